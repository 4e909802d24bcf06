"""Prompts that no expert covers, in the report of a run and on the page of a study: how often each gate abstains."""

from collections.abc import Iterable, Mapping, Sequence

from pmemx.core.metric import Figure
from pmemx.core.study import Study
from pmemx.report.page import Section
from pmemx.report.paper import Part, Sheet
from pmemx.report.run import Run, label
from pmemx.report.tables import Table, percent

GENERAL, LEFT_OUT, ALL = "general", "left_out", "all_domains"
TEXT = (
    "Share of prompts that a gate sends to no expert, which is right for all of them. Left out: held-out prompts of a domain while "
    "its own expert is barred; of a gate that was trained with the expert this is no leave-one-out of the training. Passages of general "
    "text begin anywhere in a text."
)


def uncovered(run: Run) -> Section:
    """One table for all gates, and one of each domain that was left out."""
    key, title = "uncovered", "What no expert covers"
    tables = [
        (name, Table(columns, tuple((label(gate), *cells) for gate, cells in rows)))
        for name, columns, rows in (
            _by_length(run.record.figures, run.gates, run.evidence.passage_lengths if run.evidence else ()),
            _by_domain(run.record.figures, run.gates, run.experts),
        )
        if rows
    ]
    if not tables:
        return Section(key, title, TEXT, absent="no gate was shown prompts that no expert covers")
    return Section(key, title, TEXT, tables=tuple(tables))


def uncovered_part(study: Study) -> Part | None:
    """The same for the methods of a study; None where nothing was measured."""
    gates = [method.name for method in study.methods]
    sheets = [
        Sheet(name, columns, (("", tuple((label(gate), *cells) for gate, cells in rows)),))
        for name, columns, rows in (
            _by_length(study.figures, gates, study.passage_lengths),
            _by_domain(study.figures, gates, _left_out(study, gates)),
        )
        if rows
    ]
    return Part("uncovered", "What no expert covers", TEXT, sheets=tuple(sheets)) if sheets else None


def _left_out(study: Study, gates: Sequence[str]) -> list[str]:
    """Domains by name; those of pooled seeds are as many as there are seeds, and stand in no table."""
    names = study.experts
    return [name for name in names if any(f"uncovered/{gate}/{LEFT_OUT}/{name}" in study.figures for gate in gates)]


Rows = list[tuple[str, tuple[str, ...]]]


def _by_length(
    figures: Mapping[str, Figure], gates: Sequence[str], lengths: Sequence[int]
) -> tuple[str, tuple[str, ...], Rows]:
    columns = ("gate", "domain left out", *(f"general text, {length} tokens" for length in lengths))
    keys = [
        (gate, [f"uncovered/{gate}/{LEFT_OUT}/{ALL}", *(f"uncovered/{gate}/{GENERAL}/{n}" for n in lengths)])
        for gate in gates
    ]
    return "Sent to no expert", columns, _rows(figures, keys)


def _by_domain(
    figures: Mapping[str, Figure], gates: Sequence[str], domains: Sequence[str]
) -> tuple[str, tuple[str, ...], Rows]:
    keys = [(gate, [f"uncovered/{gate}/{LEFT_OUT}/{domain}" for domain in domains]) for gate in gates]
    return "Sent to no expert while its own is barred", ("gate", *domains), _rows(figures, keys)


def _rows(figures: Mapping[str, Figure], keys: Iterable[tuple[str, Sequence[str]]]) -> Rows:
    found = [(gate, [figures.get(name) for name in names]) for gate, names in keys]
    return [(gate, tuple(map(_share, row))) for gate, row in found if any(figure is not None for figure in row)]


def _share(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    bounds = "" if figure.low is None or figure.high is None else f" [{percent(figure.low)}, {percent(figure.high)}]"
    return percent(figure.value) + bounds
