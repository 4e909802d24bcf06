"""Stage: export the experts of this run for the clients people use."""

from dataclasses import dataclass

from pmemx.core.exporter import Exporter
from pmemx.core.stage import Stage, Workspace
from pmemx.core.store import Store
from pmemx.stage.bank import course_digests


@dataclass(frozen=True, kw_only=True)
class ExportStage(Stage):
    """One folder an expert, under <run>/<folder>. Raises AccessDenied for an expert that may not leave the store."""

    store: Store
    exporter: Exporter
    folder: str = "export"

    def run(self, workspace: Workspace) -> dict[str, float]:
        """The number of folders written."""
        digests = [versions[-1] for versions in course_digests(workspace.folder, "experts").values()]
        folder = workspace.folder / self.folder
        blocks = self.store.leave(digests, to=str(folder))
        paths = self.exporter.export(blocks, folder, versions=[self.store.find(digest) for digest in digests])
        return {"folders": float(len(paths))}
