"""Stage: export the experts of this run for the clients people use."""

from dataclasses import dataclass

from pmemx.core.exporter import Exporter
from pmemx.core.stage import Stage, Workspace
from pmemx.core.store import Store
from pmemx.stage.bank import course_digests


@dataclass(frozen=True, kw_only=True)
class ExportStage(Stage):
    """One folder an expert, under <run>/<folder>."""

    store: Store
    exporter: Exporter
    folder: str = "export"

    def run(self, workspace: Workspace) -> dict[str, float]:
        """The number of folders written."""
        blocks = [self.store.get(versions[-1]) for versions in course_digests(workspace.folder, "experts").values()]
        paths = self.exporter.export(blocks, workspace.folder / self.folder)
        return {"folders": float(len(paths))}
