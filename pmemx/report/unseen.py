"""The part of a study's page on prompts that no expert covers and prompts that take two experts at once."""

from collections.abc import Iterator, Mapping, Sequence

from pmemx.core.domain import joined_parts
from pmemx.core.metric import Figure
from pmemx.core.study import StudiedMethod, Study
from pmemx.report.paper import Cell, Part, Sheet
from pmemx.report.run import label
from pmemx.report.tables import number, percent, with_interval


def unseen_parts(study: Study) -> Iterator[Part]:
    """One part, or none where every domain has an expert, is general text or cannot be answered by anybody."""
    pairs = {name: parts for name in study.other_domains if (parts := joined_parts(name, study.experts))}
    nobody = [name for name in study.other_domains if name not in pairs]
    sheets = (_to_nobody(study, nobody), _loss_on_pairs(study, pairs), _weight_on_pairs(study, pairs))
    text = (
        "Of a prompt that no expert covers the right choice is none of them. A prompt that takes two experts has no right "
        "choice among single ones: nats per token of its answer say what a mixture makes of it, and weights say whom the gate asked."
    )
    # With general text and unanswerable prompts alone the table of all methods has said it.
    if not pairs and len(nobody) < 3:
        return
    yield Part("unseen", "Beyond the experts", text, sheets=tuple(sheet for sheet in sheets if sheet.groups[0][1]))


def _to_nobody(study: Study, domains: list[str]) -> Sheet:
    def share(method: StudiedMethod, domain: str) -> str:
        found = study.figures.get(f"routing/{method.name}/accuracy/{domain}/test")
        return "–" if found is None else percent(found.value)

    rows = [(label(method.name), *(share(method, domain) for domain in domains)) for method in study.methods]
    said = tuple(row for row in rows if set(row[1:]) - {"–"})
    return Sheet("Sent to no expert", ("method", *domains), (("", said),))


def _loss_on_pairs(study: Study, pairs: Mapping[str, Sequence[str]]) -> Sheet:
    def loss(method: str, domain: str) -> Figure | None:
        return study.figures.get(f"token_loss/{method}/{domain}/test")

    found = {label(m.name): [loss(m.name, domain) for domain in pairs] for m in study.methods}
    alone = [[loss(f"expert/{part}", domain) for part in parts] for domain, parts in pairs.items()]
    found["the better expert alone"] = [_least(figures) for figures in alone]
    least = [_least([figures[column] for figures in found.values()]) for column in range(len(pairs))]
    rows = tuple(
        (name, *(_nats(figure, figure is best) for figure, best in zip(figures, least, strict=True)))
        for name, figures in found.items()
        if any(figure is not None for figure in figures)
    )
    return Sheet("Two experts at once: nats per token of the answer, less is better", ("method", *pairs), (("", rows),))


def _weight_on_pairs(study: Study, pairs: Mapping[str, Sequence[str]]) -> Sheet:
    def said(method: StudiedMethod, domain: str, parts: Sequence[str]) -> str:
        known = [study.figures.get(f"pairs/{method.name}/weight/{domain}/{choice}") for choice in (*parts, "no_expert")]
        return "–" if None in known else " / ".join(number(figure.value) for figure in known if figure is not None)

    rows = [(label(m.name), *(said(m, domain, parts) for domain, parts in pairs.items())) for m in study.methods]
    kept = tuple(row for row in rows if set(row[1:]) - {"–"})
    title = "Two experts at once: mean weight on the first / the second / none"
    return Sheet(title, ("method", *pairs), (("", kept),))


def _least(figures: list[Figure | None]) -> Figure | None:
    return min((figure for figure in figures if figure is not None), key=lambda figure: figure.value, default=None)


def _nats(figure: Figure | None, best: bool) -> str | Cell:
    text = "–" if figure is None else with_interval(figure)
    return Cell(text, "best") if best and figure is not None else text
