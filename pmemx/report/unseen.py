"""The part of a study's page on prompts that no expert covers and prompts that take two experts at once."""

from collections.abc import Mapping, Sequence

from pmemx.core.domain import joined_parts, joins_expert
from pmemx.core.metric import Figure
from pmemx.core.study import StudiedMethod, Study
from pmemx.report.paper import Cell, Part, Sheet
from pmemx.report.run import label
from pmemx.report.tables import percent, with_interval

REFERENCES = ("base", "oracle", "teacher")
"""What recovery is measured from and to, and what reads the document: no way of composing experts."""
IN_MAIN_TABLE = ("general", "unknown")
"""Domains without an expert of which the table of all methods speaks."""


def unseen_part(study: Study) -> Part | None:
    """None where every domain has an expert or stands in the table of all methods, and where nothing was measured."""
    others = study.other_domains
    pairs = {name: parts for name in others if (parts := joined_parts(name, study.experts))}
    nobody = [name for name in others if not joins_expert(name, study.experts)]
    sheets = [_to_nobody(study, nobody)] if set(nobody) - set(IN_MAIN_TABLE) else []
    text = "Of a prompt that no expert covers the right choice is none of them."
    lines: tuple[str, ...] = ()
    if pairs:
        sheets += [_loss_on_pairs(study, pairs), _weight_on_pairs(study, pairs)]
        text += (
            " A prompt that takes two experts has no right choice among single ones: nats per token of its answer say what "
            "a mixture makes of it, and weights say whom the gate asked."
        )
        lines = (
            "Bold is the least loss of a way of composing. The better expert alone is chosen by the same questions that "
            "measure it, which flatters it.",
        )
    shown = tuple(sheet for sheet in sheets if sheet.groups[0][1])
    return Part("unseen", "Beyond the experts", text, sheets=shown, lines=lines) if shown else None


def _to_nobody(study: Study, domains: Sequence[str]) -> Sheet:
    def share(method: StudiedMethod, domain: str) -> str:
        found = study.figures.get(f"routing/{method.name}/accuracy/{domain}/test")
        return "–" if found is None else percent(found.value)

    rows = [(label(method.name), *(share(method, domain) for domain in domains)) for method in study.methods]
    return Sheet("Sent to no expert", ("method", *domains), (("", _measured(rows)),))


def _loss_on_pairs(study: Study, pairs: Mapping[str, Sequence[str]]) -> Sheet:
    def loss(method: str, domain: str) -> Figure | None:
        return study.figures.get(f"token_loss/{method}/{domain}/test")

    found = {m.name: [loss(m.name, domain) for domain in pairs] for m in study.methods}
    ways = [figures for name, figures in found.items() if name not in REFERENCES]
    best = [_least([figures[column] for figures in ways]) for column in range(len(pairs))]
    rows = [
        (label(name), *(_nats(figure, figure is least) for figure, least in zip(figures, best, strict=True)))
        for name, figures in found.items()
    ]
    alone = [_least([loss(f"expert/{part}", domain) for part in parts]) for domain, parts in pairs.items()]
    rows.append(("the better expert alone", *(_nats(figure, False) for figure in alone)))
    title = "Two experts at once: nats per token of the answer, less is better"
    return Sheet(title, ("method", *pairs), (("", _measured(rows)),))


def _weight_on_pairs(study: Study, pairs: Mapping[str, Sequence[str]]) -> Sheet:
    def said(method: StudiedMethod, domain: str, parts: Sequence[str]) -> str:
        known = [study.figures.get(f"pairs/{method.name}/weight/{domain}/{choice}") for choice in (*parts, "no_expert")]
        return "–" if None in known else " / ".join(_weight(figure.value) for figure in known if figure is not None)

    rows = [(label(m.name), *(said(m, domain, parts) for domain, parts in pairs.items())) for m in study.methods]
    title = "Two experts at once: mean weight on the first / the second / none"
    return Sheet(title, ("method", *pairs), (("", _measured(rows)),))


def _weight(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def _measured(rows: Sequence[tuple[str | Cell, ...]]) -> tuple[tuple[str | Cell, ...], ...]:
    """Rows with a figure in them."""
    return tuple(row for row in rows if any(cell != "–" for cell in row[1:]))


def _least(figures: Sequence[Figure | None]) -> Figure | None:
    return min((figure for figure in figures if figure is not None), key=lambda figure: figure.value, default=None)


def _nats(figure: Figure | None, best: bool) -> str | Cell:
    text = "–" if figure is None else with_interval(figure)
    return Cell(text, "best") if best and figure is not None else text
