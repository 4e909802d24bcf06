"""The page of a study over seeds: abstract, set-up, table, claims, figures and limits, and the same table as Markdown."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pmemx.core.atomic import write_whole
from pmemx.core.metric import Figure
from pmemx.core.study import Spread, StudiedMethod, Study
from pmemx.core.verdict import Outcome, Verdict
from pmemx.report.page import READING, Picture
from pmemx.report.paper import Cell, Kind, Paper, Part, Sheet, paper_html, sheet_markdown
from pmemx.report.run import label
from pmemx.report.study_charts import against_cost, forest, frontier
from pmemx.report.style import standalone
from pmemx.report.tables import number, percent, table
from pmemx.report.uncovered import uncovered_part
from pmemx.report.unseen import REFERENCES, unseen_part

OUTCOMES: dict[Outcome, Kind] = {"reproduced": "yes", "not reproduced": "no", "not testable": "open"}


def write_study(study: Study, folder: Path) -> Path:
    """Write index.html, table.md and figures/ into the folder, and return the path of index.html.

    The same study gives the same bytes; what was not measured is a dash, and a figure without a number is left out.
    """
    paper = paper_of(study)
    save_pictures([picture for part in paper.parts for picture in part.pictures], folder)
    lines = [f"# {paper.title}", "", paper.subtitle, "", *([f"**{paper.notice}**", ""] if paper.notice else [])]
    lines += [sheet_markdown(_results(study)), "", *(f"- {line}" for line in _columns(study))]
    for part in (uncovered_part(study), unseen_part(study)):
        for sheet in part.sheets if part is not None else ():
            lines += ["", f"## {sheet.title}", "", sheet_markdown(sheet)]
    write_whole(folder / "table.md", ("\n".join(lines) + "\n").encode())
    path = folder / "index.html"
    write_whole(path, paper_html(paper).encode())
    return path


def save_pictures(pictures: Sequence[Picture], folder: Path) -> None:
    """figures/<name>.svg and figures/<name>.png."""
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    for picture in pictures:
        write_whole(figures / f"{picture.file}.svg", standalone(picture.svg).encode())
        write_whole(figures / f"{picture.file}.png", picture.png)


def paper_of(study: Study) -> Paper:
    """Everything the page says, before it becomes HTML."""
    seeds = len(study.seeds)
    subtitle = [
        f"{_ways(study)} methods over {len(study.experts)} experts",
        f"base model {study.base.name}" if study.base else "",
        f"{seeds} seeds" if seeds > 1 else "one seed",
        f"{study.questions:,} held-out questions in {study.clusters:,} clusters",
    ]
    notice = (
        f"One seed only ({study.seeds[0].name}): nothing here speaks of how figures vary between trainings, and every "
        "verdict holds for this one bank of experts."
        if seeds == 1
        else ""
    )
    shown = [_setup(study), _table_part(study), *_pictures(study)]
    shown += [part for part in (uncovered_part(study), unseen_part(study)) if part is not None]
    parts = [*shown, _claims(study), _limits(study), _provenance(study)]
    title, told = study.title, " · ".join(filter(None, subtitle))
    notice = " ".join(filter(None, (study.notice, notice)))
    return Paper(title, told, " ".join(_sentences(study)), tuple(parts), notice, _summary(study))


def _ways(study: Study) -> int:
    return sum(method.name not in (*REFERENCES, "experts_mean") for method in study.methods)


def _groups(study: Study) -> dict[str, list[StudiedMethod]]:
    groups: dict[str, list[StudiedMethod]] = {}
    for method in study.methods:
        groups.setdefault(method.group, []).append(method)
    return groups


def _best(methods: Sequence[StudiedMethod]) -> tuple[StudiedMethod, Figure] | None:
    known = [(m, m.recovery) for m in methods if m.recovery is not None and m.name not in REFERENCES]
    return max(known, key=lambda item: item[1].value) if known else None


def _sentences(study: Study) -> Iterator[str]:
    seeds = len(study.seeds)
    over = f"over {seeds} seeds" if seeds > 1 else "with one seed"
    score = "exact match" if study.score == "exact" else "loss in nats per token"
    yield (
        f"{_ways(study)} methods over a bank of {len(study.experts)} LoRA experts"
        f"{f' of the frozen base model {study.base.name}' if study.base else ''} are compared {over} by {score} on the same "
        f"{study.questions:,} held-out questions in {study.clusters:,} independent clusters. Recovery is the share of "
        "what the right expert, chosen by a label, gains over the base model."
    )
    found = sorted(_leaders(study).items(), key=lambda item: -item[1][1].value)
    if found:
        (group, (method, figure)), *rest = found
        others = ", ".join(f"{label(m.name)} ({name.lower()}) {share(f)}" for name, (m, f) in rest[:2])
        yield (
            f"The highest recovery is that of {label(method.name)} ({group.lower()}), {share(figure)}"
            f"{f', followed among the best of the other groups by {others}' if others else ''}; brackets are 95 % intervals."
        )
    if study.verdicts:
        counts = {outcome: sum(v.outcome == outcome for v in study.verdicts) for outcome in OUTCOMES}
        yield (
            f"Of {len(study.verdicts)} orderings that papers report, {counts['reproduced']} "
            f"{'is' if counts['reproduced'] == 1 else 'are'} reproduced here, {counts['not reproduced']} "
            f"{'is' if counts['not reproduced'] == 1 else 'are'} not, and {counts['not testable']} cannot be tested with these methods."
        )


def _leaders(study: Study) -> dict[str, tuple[StudiedMethod, Figure]]:
    return {group: best for group, methods in _groups(study).items() if (best := _best(methods)) is not None}


def _summary(study: Study) -> tuple[Sheet, ...]:
    columns = ("group", "highest recovery", "recovery, % [95 %]", "routed right, %", "cost", "trained")
    rows = tuple(
        (group, label(m.name), share(f, unit=""), _percentage(m.routing), _cost(m.multiply_adds), _count(m.parameters))
        for group, (m, f) in _leaders(study).items()
    )
    return (Sheet("", columns, (("", rows),), 2),) if rows else ()


def share(figure: Figure | None, *, unit: str = " %") -> str:
    """A share in per cent with its interval; a dash where there is none."""
    if figure is None:
        return "–"
    bounds = "" if figure.low is None or figure.high is None else f" [{_points(figure.low)}, {_points(figure.high)}]"
    return f"{_points(figure.value)}{unit}{bounds}"


def _points(value: float) -> str:
    return f"{100 * value + 0.0:.1f}".replace("-0.0", "0.0").replace("-", "−")


def _setup(study: Study) -> Part:
    per_seed = study.questions / len(study.seeds)
    rows = {
        "base model": study.base.name if study.base else "",
        "experts in the bank": f"{len(study.experts)}: {', '.join(study.experts)}",
        "domains without an expert": ", ".join(study.other_domains),
        "seeds": ", ".join(seed.name for seed in study.seeds),
        "held-out questions": f"{study.questions:,} ({per_seed:,.0f} a seed), in {study.clusters:,} independent clusters",
        "score": "exact match of greedy decoding" if study.score == "exact" else "nats per token of the response",
        "methods": str(_ways(study)),
        "not in every seed, left out": ", ".join(map(label, study.dropped)),
    }
    text = (
        "Every method of a seed answers the same held-out questions. Recovery is (method − base) / "
        "(oracle − base), each domain of each seed counting once: 0 is the base model, 100 % is the right expert chosen by "
        "a label. Intervals are 95 %, from a bootstrap of whole clusters within each domain and seed, paired by question; "
        "where all seeds ask the same questions, a document is drawn for all of them together."
    )
    sheet = Sheet("", ("item", "value"), (("", tuple((k, v) for k, v in rows.items() if v)),), 2)
    return Part("setup", "Set-up", text, sheets=(sheet,))


def _columns(study: Study) -> tuple[str, ...]:
    lost = "right answers" if study.score == "exact" else "loss on the domains, lower is better"
    unknown = (
        "; unknown → none: share of prompts that nobody can answer sent to no expert" if _asks_unknown(study) else ""
    )
    if _leaves_out(study):
        unknown += "; left out → none: the same of a domain's prompts while its expert is barred"
    return (
        f"recovery: of what the right expert gains over the base, with its 95 % interval; {'exact match' if study.score == 'exact' else 'nats'}: {lost}.",
        f"routed right: share of held-out prompts of the experts' domains whose greatest weight is their expert's{unknown}.",
        "general, nats: change of loss on general text against the base, per token; more is worse.",
        "cost: multiply-adds per token, the base's being 1×. trained, seconds: parameters that were trained besides the experts, and wall time "
        "to train them; the range over seeds stands behind a mean where they differ.",
        "Bold is the highest recovery of a group. A dash is what was not measured, or has no meaning.",
    )


def _asks_unknown(study: Study) -> bool:
    """Whether there are prompts that nobody can answer: tables of real text have none."""
    return any(method.unknown for method in study.methods)


def _leaves_out(study: Study) -> bool:
    return any(method.left_out for method in study.methods)


def _results(study: Study) -> Sheet:
    score = "exact match, %" if study.score == "exact" else "nats per token"
    unknown = ("unknown → none, %",) if _asks_unknown(study) else ()
    left_out = ("left out → none, %",) if _leaves_out(study) else ()
    columns = ("method", "source", "recovery, % [95 %]", score, "routed right, %", *unknown, *left_out, "general, nats", "cost", "trained", "seconds")  # fmt: skip
    groups = []
    for group, methods in _groups(study).items():
        best = _best(methods)
        ordered = sorted(methods, key=lambda method: -method.recovery.value if method.recovery else 0.0)
        rows = tuple(_row(study, method, best is not None and method is best[0]) for method in ordered)
        groups.append((group, rows))
    return Sheet("", columns, tuple(groups), 2)


def _row(study: Study, method: StudiedMethod, best: bool) -> tuple[str | Cell, ...]:
    name, recovery = label(method.name), share(method.recovery, unit="")
    score = method.score.value if method.score else None
    return (
        Cell(name, "best") if best else name,
        method.source,
        Cell(recovery, "best") if best else recovery,
        _percentage(method.score) if study.score == "exact" else number(score),
        _percentage(method.routing),
        *((_percentage(method.unknown),) if _asks_unknown(study) else ()),
        *((_percentage(method.left_out),) if _leaves_out(study) else ()),
        number(method.general.value if method.general else None),
        _cost(method.multiply_adds),
        _count(method.parameters),
        _range(method.seconds, lambda value: f"{value:,.0f}" if value >= 10 else f"{value:.1f}"),
    )


def _percentage(figure: Figure | None) -> str:
    return "–" if figure is None else _points(figure.value)


def _cost(spread: Spread | None) -> str:
    return _range(spread, lambda value: f"{value:.2f}×")


def _count(spread: Spread | None) -> str:
    return _range(spread, lambda value: f"{value:,.0f}")


def _range(spread: Spread | None, say: Callable[[float], str]) -> str:
    if spread is None:
        return "–"
    # A range within a twentieth of its mean says little, and takes room from the other columns.
    narrow = spread.most - spread.least <= 0.05 * abs(spread.mean)
    return say(spread.mean) if narrow else f"{say(spread.mean)} ({say(spread.least)}–{say(spread.most)})"


def _table_part(study: Study) -> Part:
    return Part("table", "All methods", "", sheets=(_results(study),), lines=_columns(study))


def _pictures(study: Study) -> Iterator[Part]:
    known = [method for method in study.methods if method.recovery is not None]
    if not known:
        return
    best = sorted(((m.recovery.value, label(m.name)) for m in known if m.recovery), reverse=True)
    drawn, raster = forest("recovery", known)
    alt = (
        f"Recovery of {len(known)} methods with intervals, sorted; the highest is {best[0][1]} with {percent(best[0][0])}, "
        f"the lowest {best[-1][1]} with {percent(best[-1][0])}."
    )
    numbers = table(("method",), (((label(m.name),), m.recovery) for m in known if m.recovery))
    rings = " Rings are the single seeds." if len(study.seeds) > 1 else ""
    text = f"Marks are means over domains and seeds, lines their 95 % intervals.{rings} What lies below −50 % stands at the edge."
    picture = Picture("recovery", "Recovery of every method", alt, drawn, numbers, raster)
    yield Part("recovery", "Recovery", text, (picture,))
    points = [(m, m.multiply_adds.mean, m.recovery) for m in known if m.multiply_adds and m.recovery]
    if not points:
        return
    drawn, raster = against_cost("cost", known)
    named = ", ".join(label(method.name) for method in frontier(points))
    numbers = table(("method", "cost"), (((label(m.name), f"{cost:.3f}×"), found) for m, cost, found in points))
    alt = f"Recovery of {len(points)} methods against multiply-adds per token. Above all that cost no more: {named}."
    text = "Named methods recover at least one point more than every method that costs no more. Multiply-adds are counted, not timed."
    picture = Picture("cost", "Recovery against cost at run time", alt, drawn, numbers, raster)
    yield Part("cost", "Recovery against cost", text, (picture,))


def _claims(study: Study) -> Part:
    def row(verdict: Verdict) -> tuple[str | Cell, ...]:
        outcome = Cell(verdict.outcome, OUTCOMES[verdict.outcome])
        return (verdict.claim, verdict.statement, outcome, verdict.why, verdict.source)

    columns = ("claim", "what papers report", "verdict", "why", "source")
    sheet = Sheet("", columns, (("", tuple(map(row, study.verdicts))),), 5, wide=True)
    unit = (
        "of exact match, 1 being all questions, or in nats where it says so"
        if study.score == "exact"
        else "in nats per token saved"
    )
    text = (
        f"Each claim is a set of paired differences, {unit}. It is reproduced where the 95 % interval of every one lies above "
        "0, or above the stated margin; not reproduced where one does not; not testable where something is missing."
    )
    return Part("claims", "What the literature reports", text, sheets=(sheet,) if study.verdicts else ())


def _limits(study: Study) -> Part:
    seeds = len(study.seeds)
    lines = [
        "One seed was run: intervals speak of the questions, given this one set of experts, and not of other trainings."
        if seeds == 1
        else f"Intervals speak of the questions, given these {seeds} trainings, which are strata; {seeds} seeds say little of the variation between trainings, which the rings show.",
        "The best of a group is named by the same questions that measure it, and intervals are corrected neither for the number of methods nor for that of claims.",
        "A claim that is not reproduced here may hold where its paper tested it: other base models, experts, tasks and tuning.",
        "Seconds are wall time of whatever machine ran the seed; multiply-adds are counted on a sample of the questions.",
    ]
    if study.dropped:
        lines.append(f"Left out, since a seed lacks them: {', '.join(map(label, study.dropped))}.")
    if study.clusters < 30 * seeds:
        lines.append(f"With {study.clusters} clusters intervals are wide, and the bootstrap's coverage is approximate.")
    return Part("limits", "Limits", lines=(*lines, *study.limits))


def _provenance(study: Study) -> Part:
    rows = tuple(
        (s.name, s.folder, s.created, s.commit[:12] + ("+" if s.commit.endswith("+") else ""), s.digest[:16])
        for s in study.seeds
    )
    runs = Sheet("Runs", ("seed", "folder", "created (UTC)", "commit", "digest of the settings"), (("", rows),), 5)
    made = {
        "to make it again": f"pmemx run experiments={study.title}",
        "fingerprint of the base": study.base.fingerprint if study.base else "",
        **dict(study.versions),
    }
    versions = Sheet("Made with", ("item", "value"), (("", tuple((k, v) for k, v in made.items() if v)),), 2)
    return Part(
        "provenance",
        "How it was made, and how to read it",
        "All figures with their intervals are in study.json, the table in table.md, the pictures in figures/.",
        sheets=(runs, versions),
        lines=READING,
    )
