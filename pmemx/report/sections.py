"""The sections of a report, each from the figures that the run recorded; what is missing is said, not drawn."""

from pmemx.report.keeping import general, growth, training
from pmemx.report.knowledge import experts, phrasings, recovery
from pmemx.report.library import library
from pmemx.report.page import Section
from pmemx.report.run import Run
from pmemx.report.sending import routing
from pmemx.report.uncovered import uncovered


def sections(run: Run) -> tuple[Section, ...]:
    """All sections in reading order; the library only where the run looked at it, which few runs do."""
    parts = (experts, recovery, phrasings, routing, uncovered, general, growth, training)
    return tuple(part(run) for part in parts) + library(run)
