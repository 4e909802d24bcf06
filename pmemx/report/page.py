"""What a report consists of, before it becomes HTML or Markdown."""

import re
from dataclasses import dataclass

from pmemx.report.tables import Table


@dataclass(frozen=True)
class Finding:
    """One key number in plain words: what was asked, the number, and the sentence that gives it its meaning."""

    question: str
    answer: str
    sentence: str


@dataclass(frozen=True)
class Picture:
    """A figure as SVG with its words: title, what it shows to one who cannot see it, and the numbers behind it.

    png is empty unless trackers should show the figure, too. labels: points at the left, the names of rows, that stay in
    sight where a narrow page scrolls the rest. legend: how to read it, empty where that is plain.
    """

    name: str
    title: str
    alt: str
    svg: str
    table: Table
    png: bytes = b""
    labels: float = 0.0
    legend: str = ""

    @property
    def file(self) -> str:
        """Name of the figure's own file, without its ending."""
        return re.sub(r"[^A-Za-z0-9_-]+", "-", self.name)


@dataclass(frozen=True)
class Section:
    """One heading. absent says why there is nothing to show; the section is then named at the end of the report."""

    key: str
    title: str
    text: str
    pictures: tuple[Picture, ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()
    absent: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report. facts: what the run was, in pairs. appendix: every figure of the record, grouped.

    notice: what a reader must know before anything else; empty for nothing.
    """

    title: str
    subtitle: str
    findings: tuple[Finding, ...]
    sections: tuple[Section, ...]
    facts: tuple[tuple[str, Table], ...]
    appendix: tuple[tuple[str, Table], ...]
    notes: tuple[str, ...]
    config: str
    notice: str = ""

    @property
    def shown(self) -> tuple[Section, ...]:
        """Sections with something to show."""
        return tuple(section for section in self.sections if not section.absent)

    @property
    def absent(self) -> tuple[Section, ...]:
        """Sections that the run's records do not allow."""
        return tuple(section for section in self.sections if section.absent)


READING = (
    "value [low, high] is a 95 % interval from a bootstrap that resamples whole clusters (documents), never single questions. "
    "Differences between methods are paired: both answered the same questions. Of a rate or a difference of rates each end is "
    "the farther one of the percentiles and of the Wilson interval at the effective sample size, for near 0 and 1 percentiles "
    "alone are short. Short they remain, covering 0.87 to 0.92 of truths, where a few clusters, each as a whole, make all the difference.",
    "n counts questions, clusters the independent groups among them. With few clusters the interval is wide, and it should be. "
    "Where every cluster agrees, it says how many disagreeing ones the sample could have missed; with a single cluster there is none.",
    "floor is what guessing gives; ceiling is the same base model reading the document in its context (for entropies: the largest possible). "
    "– stands for what does not apply or was not measured.",
    "Held-out questions use phrasings, or items, that no training saw. Rates are shares from 0 to 1 in tables, per cent in pictures; losses are nats per token.",
)
