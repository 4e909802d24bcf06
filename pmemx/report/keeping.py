"""Sections on what is forgotten, on general text and over growth, and on training."""

from collections.abc import Mapping

from pmemx.core.metric import Figure
from pmemx.core.record import CurvePoint
from pmemx.report import charts, heatmaps
from pmemx.report.page import Picture, Section
from pmemx.report.run import Run, label
from pmemx.report.tables import Table, number, table, table_of


def general(run: Run) -> Section:
    """What each method costs on general text."""
    key, title = "general", "What it costs on general text"
    text = "Change of loss against the base model on text that belongs to no domain, in nats per token: 0 is nothing forgotten, more is worse."
    names = [method for method in run.systems if method not in ("base", "oracle")]
    last = f"sequential/{len(run.evidence.sequence)}" if run.evidence else ""
    found = run.figures({method: f"forgetting_general/loss/{method}" for method in [*names, last]})
    each = run.figures({expert: f"forgetting_general/loss/expert/{expert}" for expert in run.experts})
    if not found and not each:
        return Section(key, title, text, absent="general text was not measured")
    named = {"sequential" if method == last else method: figure for method, figure in found.items()}
    if each:
        mean = sum(figure.value for figure in each.values()) / len(each)
        named["experts_mean"] = Figure(
            mean, n=sum(f.n for f in each.values()), clusters=max(f.clusters for f in each.values())
        )
    ordered = dict(sorted(named.items(), key=lambda item: item[1].value))
    dots = {"experts_mean": [figure.value for figure in each.values()]}
    drawn = charts.bars("general", ordered, axis="change of loss on general text, nats per token", dots=dots)
    alt = (
        "Bars of the change of loss on general text: "
        + ", ".join(f"{label(m)} {number(f.value)}" for m, f in ordered.items())
        + "."
    )
    rows: list[tuple[tuple[str, ...], Figure]] = []
    for method in [*names, last, *(f"expert/{expert}" for expert in run.experts)]:
        for words, name in (
            ("loss, nats", "loss"),
            ("KL, nats", "kl"),
            ("exact match, points", "exact"),
            ("tokens right, points", "tokens"),
        ):
            if figure := run.figure(f"forgetting_general/{name}/{method}"):
                rows.append(((label(method), words), figure))
    return Section(
        key,
        title,
        text,
        (Picture("general", "Loss on general text", alt, drawn, table(("method", "change of"), rows)),),
    )


def growth(run: Run) -> Section:
    """Forgetting over the sequence of domains: one LoRA trained on, and the bank."""
    key, title = "growth", "Growing one domain at a time"
    sequence = list(run.evidence.sequence) if run.evidence else []
    score = run.score
    words = "exact match" if score == "exact" else "nats per token"
    text = (
        "Domains arrive one after another. One LoRA that is trained on forgets the old ones; a bank adds an expert and leaves the others untouched, "
        "so under oracle routing it forgets nothing, and what it does forget is the gate's."
    )
    stages = range(1, len(sequence) + 1)
    series: dict[str, dict[int, Figure]] = {}
    for name in ("sequential", "bank", "bank_oracle"):
        points = {
            i: figure for i in stages if (figure := run.figure(f"sequential/{score}/{name}/seen/{i}")) is not None
        }
        if points:
            series[name] = points
    if not series:
        return Section(key, title, text, absent="no sequential run was measured")
    series |= _bank_without_stages(run, series, sequence)
    drawn = charts.lines("growth", series, sequence, axis=f"mean {words} on domains so far")
    ends = ", ".join(f"{label(name)} ends at {number(points[max(points)].value)}" for name, points in series.items())
    keyed = [
        ((label(name), f"{i} {sequence[i - 1]}"), figure)
        for name, points in series.items()
        for i, figure in points.items()
    ]
    pictures = [
        Picture(
            "growth",
            f"Mean {words} on the domains learnt so far",
            f"Lines over {len(sequence)} stages: {ends}.",
            drawn,
            table(("run", "after stage"), keyed),
        )
    ]
    matrices: dict[str, dict[tuple[str, str], Figure]] = {
        name: {
            (str(i), domain): figure
            for i in stages
            for domain in sequence
            if (figure := run.figure(f"sequential/{score}/{name}/R/{i}/{domain}")) is not None
        }
        for name in ("sequential", "bank")
        if any(run.figure(f"sequential/{score}/{name}/seen/{i}") for i in stages)
    }
    if score == "exact":
        pictures.append(_growth_matrix(matrices, sequence))
    names = {"final score (ACC)": "acc", "backward transfer (BWT)": "bwt", "forgetting (Chaudhry)": "forgetting"}
    found = {
        f"{label(name)}: {what}": figure
        for name in series
        for what, figure in run.figures(
            {what: f"sequential/{score}/{name}/{part}" for what, part in names.items()}
        ).items()
    }
    return Section(key, title, text, tuple(pictures), (("After the last stage", table_of("measure", found)),))


def _bank_without_stages(run: Run, series: Mapping[str, object], sequence: list[str]) -> dict[str, dict[int, Figure]]:
    """Lines that need no further run: the oracle's scores, which growth cannot change, and the gate at the end."""
    measure = "exact_match" if run.score == "exact" else "token_loss"
    added: dict[str, dict[int, Figure]] = {}
    scores = [run.figure(f"{measure}/oracle/{domain}/test") for domain in sequence]
    known = [score for score in scores if score is not None]
    if "bank_oracle" not in series and len(known) == len(sequence):
        added["bank_oracle"] = {
            i: Figure(
                sum(f.value for f in known[:i]) / i,
                n=sum(f.n for f in known[:i]),
                clusters=sum(f.clusters for f in known[:i]),
            )
            for i in range(1, len(known) + 1)
        }
    final = run.figure(f"{measure}/{run.gate}/all_domains/test")
    if "bank" not in series and final is not None:
        added["bank"] = {len(sequence): final}
    return added


def _growth_matrix(matrices: Mapping[str, Mapping[tuple[str, str], Figure]], sequence: list[str]) -> Picture:
    cells = {label(name): {key: figure.value for key, figure in matrix.items()} for name, matrix in matrices.items()}
    rows = [
        ((label(name), stage, domain), figure)
        for name, matrix in matrices.items()
        for (stage, domain), figure in matrix.items()
    ]
    alt = "Exact match on every domain (columns) after every stage (rows); framed cells are the domain just learnt."
    drawn = heatmaps.growth("growth_matrix", cells, sequence)
    num_cells = len(sequence) ** 2
    gaps = any(len(matrix) < num_cells for matrix in matrices.values())
    return Picture(
        "growth_matrix",
        "Exact match on each domain after each stage, per cent",
        alt,
        drawn,
        table(("run", "stage", "domain"), rows),
        legend=f"The framed cells are the domain just learnt.{' – was not measured.' if gaps else ''}",
    )


def training(run: Run) -> Section:
    """Training curves: one panel a training."""
    key, title = "training", "Training"
    text = "One panel for each training, in the unit of its loss."
    panels: dict[str, dict[str, list[CurvePoint]]] = {}
    for point in run.curves:
        if "loss" in point.name.lower():
            panel = point.stage if point.domain is None else f"{point.stage} · {point.domain}"
            panels.setdefault(panel, {}).setdefault(point.name, []).append(point)
    # A stage's headline numbers are curves of one point, and no training.
    moving = {
        panel: {name: c for name, c in found.items() if c[0].step != c[-1].step} for panel, found in panels.items()
    }
    panels = {panel: found for panel, found in moving.items() if found}
    if not panels:
        return Section(key, title, text, absent="no training curve was recorded")
    drawn = charts.curves("training", panels, axis="loss")
    ends = [
        (panel, line, str(points[0].step), number(points[0].value), str(points[-1].step), number(points[-1].value))
        for panel, lines in panels.items()
        for line, points in lines.items()
    ]
    numbers = Table(("training", "curve", "first step", "value", "last step", "value"), tuple(ends), 2)
    alt = f"Training curves in {len(panels)} panels; first and last values are in the table."
    return Section(key, title, text, (Picture("training", "Loss over training", alt, drawn, numbers),))
