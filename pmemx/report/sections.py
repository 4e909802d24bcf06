"""The sections of a report, each from the figures that the run recorded; what is missing is said, not drawn."""

from pmemx.report.keeping import general, growth, training
from pmemx.report.knowledge import experts, phrasings, recovery
from pmemx.report.page import Section
from pmemx.report.run import Run
from pmemx.report.sending import routing


def sections(run: Run) -> tuple[Section, ...]:
    """All sections in reading order."""
    return tuple(part(run) for part in (experts, recovery, phrasings, routing, general, growth, training))
