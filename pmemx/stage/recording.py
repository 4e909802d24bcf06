"""Keep what a stage measured of a version with that version in the store."""

from collections.abc import Mapping

from pmemx.core.metric import Figure
from pmemx.core.stage import Workspace
from pmemx.core.store import Store


def record_figures(
    store: Store, workspace: Workspace, reference: str, figures: Mapping[str, Figure], *, by: str
) -> None:
    """Record figures of a version; the run's notes tell which protected tags that rolled back. by: what measured them.

    Raises as Promotions.record does.
    """
    falls = store.promotions.record(reference, figures, by=by)
    if falls:
        name = store.find(reference).name
        workspace.ledger.notes.extend(f"tag {fall.tag!r} of {name}: {fall.reason}" for fall in falls)
