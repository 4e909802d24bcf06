"""Stage: the same methods over banks of several sizes, as curves of recovery and routing accuracy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pmemx.core.errors import DataError
from pmemx.core.evidence import Evidence
from pmemx.core.record import EVIDENCE_FILE
from pmemx.core.stage import Stage, Workspace
from pmemx.core.study import STUDY_FILE, Growth, GrowthPoint
from pmemx.stage.study import OTHER, PARTS, group_of

NOT_DRAWN = ("base", "oracle", "teacher")
"""0 and 1 of recovery, and what knows no bank."""


@dataclass(frozen=True, kw_only=True)
class GrowthStudyStage(Stage):
    """Last in a plan: every size that ends makes the curves anew from all that are there.

    folder: holds a run of each size (e4, e8, ...), or folders of seeds with their study; null: the folder that holds
    the run's own. The size is the number of experts that was evaluated, not the folder's name. groups as in `study`.
    """

    write: Callable[[Growth, Path], Path]
    groups: Mapping[str, Sequence[str]]
    score: Literal["exact", "loss"] = "exact"
    folder: str | None = None

    def run(self, workspace: Workspace) -> dict[str, float]:
        """Writes growth.md, growth.html and its figures. Raises DataError for two runs of one size, and where there is none."""
        folder = workspace.folder.parent if self.folder is None else Path(self.folder)
        points: dict[int, GrowthPoint] = {}
        for run in sorted(path for path in folder.iterdir() if path.is_dir()):
            size = _size(run)
            if size is None:
                continue
            if size in points:
                raise DataError(
                    f"{points[size].source} and {run.name} in {folder} both have {size} experts; move one away, or make "
                    "a study of their seeds in a folder of their own"
                )
            points[size] = GrowthPoint.read(run, size)
        if not points:
            raise DataError(f"no folder in {folder} has {EVIDENCE_FILE}; run the stage evaluate first")
        prefix, suffix = f"recovery/{self.score}/", "/all_domains"
        names = dict.fromkeys(
            name.removeprefix(prefix).removesuffix(suffix)
            for size in sorted(points)
            for name in points[size].figures
            if name.startswith(prefix) and name.endswith(suffix)
        )
        drawn = {
            name: group_of(name, self.groups) for name in names if not name.startswith(PARTS) and name not in NOT_DRAWN
        }
        order = [*self.groups, OTHER]
        groups = dict(sorted(drawn.items(), key=lambda item: order.index(item[1])))
        growth = Growth(folder.name, self.score, tuple(points[size] for size in sorted(points)), groups)
        self.write(growth, folder)
        return {"sizes": float(len(points)), "methods": float(len(groups))}


def _size(run: Path) -> int | None:
    """How many experts a run was evaluated with, or the runs of a study over seeds; None for any other folder."""
    if (run / EVIDENCE_FILE).exists():
        return len(Evidence.experts_of(run / EVIDENCE_FILE))
    if (run / STUDY_FILE).exists() and (seeds := sorted(run.glob(f"*/{EVIDENCE_FILE}"))):
        return len(Evidence.experts_of(seeds[0]))
    return None
