"""The sections of a report, each from the figures that the run recorded; what is missing is said, not drawn."""

from collections.abc import Mapping

from pmemx.core.metric import Figure
from pmemx.core.record import CurvePoint
from pmemx.report import charts, heatmaps
from pmemx.report.page import Picture, Section
from pmemx.report.run import NO_EXPERT, Run, label
from pmemx.report.tables import Table, number, table, table_of, with_interval


def sections(run: Run) -> tuple[Section, ...]:
    """All sections in reading order."""
    return tuple(part(run) for part in (experts, recovery, phrasings, routing, general, growth, training))


def experts(run: Run) -> Section:
    """The expert x domain matrix, by exact match and by loss."""
    key, title = "experts", "What each expert knows"
    pictures = [
        picture
        for score in ("exact", "loss")
        if score == run.score or run.figure(f"specialisation/{score}/diagonal")
        if (picture := _matrix(run, score)) is not None
    ]
    names = {
        "mean score of experts on their own domain": "own",
        "mean gain on the own domain over the base": "diagonal",
        "mean gain on other domains": "off_diagonal",
        "specialisation index (the one minus the other)": "index",
        "share of domains whose own expert is best": "own_is_best",
    }
    tables = [
        (f"Specialisation, {'exact match' if score == 'exact' else 'nats per token'}", table_of("measure", found))
        for score in ("exact", "loss")
        if (found := run.figures({words: f"specialisation/{score}/{name}" for words, name in names.items()}))
    ]
    text = "One expert at a time, always on, on held-out questions of every domain. The framed cells are an expert's own domain."
    if not pictures:
        return Section(key, title, text, absent="no matrix of experts and domains was measured")
    return Section(key, title, text, tuple(pictures), tuple(tables))


def _matrix(run: Run, score: str) -> Picture | None:
    columns = [facts.name for facts in (*run.domains, *run.others)]
    measure = "exact_match" if score == "exact" else "token_loss"
    figures: dict[tuple[str, str], Figure] = {}
    for domain in columns:
        for expert in run.experts:
            if found := run.figure(f"specialisation/{score}/matrix/{expert}/{domain}"):
                figures[expert, domain] = found
    if not figures:
        return None
    beside = [method for method in ("base", "teacher", run.gate) if method and method not in run.experts]
    for domain in columns:
        for method in beside:
            if found := run.figure(f"{measure}/{method}/{domain}/test"):
                figures[label(method), domain] = found
    columns = [domain for domain in columns if any(key[1] == domain for key in figures)]
    references = [label(method) for method in beside if any(key[0] == label(method) for key in figures)]
    rows = [*run.experts, *references]
    cells, words, shade = *heatmaps.shares(figures), None
    if score == "loss":
        base = {
            domain: figures[label("base"), domain].value for domain in columns if (label("base"), domain) in figures
        }
        words = {key: f"{figure.value:.2f}" for key, figure in figures.items()}
        cells = {key: base.get(key[1], figure.value) - figure.value for key, figure in figures.items()}
        shade = heatmaps.by_gain(max(abs(value) for value in cells.values()))
    drawn, raster = heatmaps.heatmap(
        f"experts_{score}",
        rows,
        columns,
        cells,
        words=words,
        marked=[(facts.expert or "", facts.name) for facts in run.domains],
        shade=shade,
        labels=("expert", "domain"),
        gap_before=references[0] if references else None,
        raster=True,
    )
    title = "Exact match, per cent" if score == "exact" else "Loss in nats per token; colour is the gain over the base"
    diagonal = [figures[key].value for f in run.domains if (key := (f.expert or "", f.name)) in figures]
    alt = (
        f"Heatmap of {len(run.experts)} experts by {len(columns)} domains. "
        + (
            f"On their own domain experts score {number(min(diagonal))} to {number(max(diagonal))}. "
            if diagonal
            else ""
        )
        + "Base model, teacher and gate stand below the experts. All values are in the table."
    )
    keyed = ((key, figures[key]) for row in rows for column in columns if (key := (row, column)) in figures)
    return Picture(f"experts_{score}", title, alt, drawn, table(("expert", "domain"), keyed), raster)


def recovery(run: Run) -> Section:
    """Recovery bars of every system."""
    key, title = "recovery", "What composition recovers"
    text = (
        "Recovery is (method − base) / (oracle − base): 1 is perfect routing, 0 is the base model, below 0 a method harms. "
        "Bars are the mean over domains with its interval, circles the single domains."
    )
    pictures = []
    last = f"sequential/{len(run.evidence.sequence)}" if run.evidence else ""
    for score in ("exact", "loss"):
        methods = [m for m in (*run.systems, "experts_mean", last) if m not in ("base",)]
        found = {m: f for m in methods if (f := run.figure(f"recovery/{score}/{m}/all_domains")) is not None}
        if not found:
            continue
        ordered = dict(sorted(found.items(), key=lambda item: -item[1].value))
        named = {"sequential" if method == last else method: figure for method, figure in ordered.items()}
        dots = {
            named_method: [f.value for d in run.domains if (f := run.figure(f"recovery/{score}/{method}/{d.name}"))]
            for named_method, method in zip(named, ordered, strict=True)
        }
        drawn = charts.bars(f"recovery_{score}", named, axis="recovery (0 base, 1 oracle)", dots=dots, ideal=1.0)
        alt = "Bars of recovery: " + ", ".join(f"{label(m)} {number(f.value)}" for m, f in named.items()) + "."
        caption = "Recovery of exact match" if score == "exact" else "Recovery of loss"
        rows = table_of("method", {label(method): figure for method, figure in named.items()})
        pictures.append(Picture(f"recovery_{score}", caption, alt, drawn, rows))
    if not pictures:
        return Section(
            key, title, text, absent="the oracle, or its gain over the base, was not measured on every domain"
        )
    return Section(key, title, text, tuple(pictures), _comparisons(run))


def _comparisons(run: Run) -> tuple[tuple[str, Table], ...]:
    rows: list[tuple[str, ...]] = []
    for score in ("exact", "loss"):
        prefix = f"comparison/{score}/"
        for name, found in run.record.figures.items():
            if name.startswith(prefix) and name.endswith("/all_domains"):
                p = run.figure(f"{name}/p")
                words = name.removeprefix(prefix).removesuffix("/all_domains").replace("-", " − ")
                cells = (with_interval(found), str(found.n), str(found.clusters), number(p.value) if p else "–")
                rows.append((words, "exact match" if score == "exact" else "nats per token", *cells))
    heads = ("difference", "score", "value [95 % interval]", "n", "clusters", "p (sign flips)")
    return (("Paired differences over all domains", Table(heads, tuple(rows), 2)),) if rows else ()


def phrasings(run: Run) -> Section:
    """Exact match by form of question, training phrasings and held-out ones apart."""
    key, title = "phrasings", "Seen and unseen phrasings"
    text = (
        "Reliability asks in a phrasing that the distillation showed, generality in one that it never did. A method that is only "
        "reliable has learnt the question, not the fact. Mean over the domains that have the form."
    )
    series: dict[str, dict[str, Figure]] = {}
    rows: dict[str, None] = {}
    for split, words in (("train", "seen"), ("test", "unseen")):
        for method in ("teacher", "oracle", run.gate, "base"):
            prefix = f"exact_match/{method}/all_domains/{split}"
            whole = {"all forms": figure} if method and (figure := run.figure(prefix)) else {}
            forms = {
                n.removeprefix(f"{prefix}/form/"): f
                for n, f in run.record.figures.items()
                if n.startswith(f"{prefix}/form/")
            }
            for form, figure in (whole | forms).items():
                rows[f"{words} · {form}"] = None
                series.setdefault(str(method), {})[f"{words} · {form}"] = figure
    if not series or run.score != "exact":
        return Section(
            key, title, text, absent="exact match by form of question was not measured, or means nothing here"
        )
    unseen = next((row for row in rows if row.startswith("unseen")), None)
    drawn = charts.ladder("phrasings", list(rows), series, axis="exact match", gap_before=unseen)
    keyed = [((label(method), row), figure) for row in rows for method, f in series.items() if (figure := f.get(row))]
    alt = f"Exact match of {', '.join(map(label, series))} for {len(rows)} forms of question, seen forms above, unseen below."
    picture = Picture("phrasings", "Exact match by form of question", alt, drawn, table(("method", "form"), keyed))
    return Section(key, title, text, (picture,))


def routing(run: Run) -> Section:
    """Confusion of domains and choices, and the weight of the right choice per site."""
    key, title = "routing", "Where the gate sends prompts"
    text = "A prompt goes to the choice of greatest weight. Prompts that belong to no expert should go to “no expert”, the base model itself."
    pictures = [picture for gate in run.gates for picture in (_confusion(run, gate), _sites(run, gate)) if picture]
    names = {
        "routing accuracy, held-out phrasings": "accuracy/all_domains/test",
        "routing accuracy, training phrasings": "accuracy/all_domains/train",
        "entropy of mean use, nats": "entropy/mean_use",
        "mean entropy per prompt, nats": "entropy/per_prompt",
        "mutual information of prompt and choice, nats": "mutual_information",
    }
    tables = [
        (f"Routing of {label(gate)}", table_of("measure", found))
        for gate in run.gates
        if (found := run.figures({words: f"routing/{gate}/{name}" for words, name in names.items()}))
    ]
    if not pictures:
        return Section(key, title, text, absent="no gate decision was recorded")
    return Section(key, title, text, tuple(pictures), tuple(tables))


def _confusion(run: Run, gate: str) -> Picture | None:
    choices = [*run.experts, NO_EXPERT]
    rows = [facts.name for facts in (*run.domains, *run.others)]
    figures = {
        (domain, choice): found
        for domain in rows
        for choice in choices
        if (found := run.figure(f"routing/{gate}/confusion/{domain}/{choice}")) is not None
    }
    if not figures:
        return None
    rows = [row for row in rows if any(key[0] == row for key in figures)]
    others = [facts.name for facts in run.others if facts.name in rows]
    right = [(facts.name, facts.expert or NO_EXPERT) for facts in (*run.domains, *run.others)]
    cells, words = heatmaps.shares(figures)
    shown = {choice: choice.replace("_", " ") if choice == NO_EXPERT else choice for choice in choices}
    drawn, _ = heatmaps.heatmap(
        f"confusion_{gate}",
        rows,
        [shown[choice] for choice in choices],
        {(row, shown[choice]): value for (row, choice), value in cells.items()},
        words={(row, shown[choice]): text if cells[row, choice] else "" for (row, choice), text in words.items()},
        marked=[(row, shown[choice]) for row, choice in right if choice in shown],
        labels=("prompts about", "sent to"),
        gap_before=others[0] if others else None,
    )
    hits = [figures[key].value for key in right if key in figures]
    alt = (
        f"Heatmap of where {label(gate)} sends held-out prompts, per cent; the right choice gets "
        f"{number(min(hits))} to {number(max(hits))} of the prompts of a domain."
        if hits
        else f"Heatmap of where {label(gate)} sends held-out prompts, per cent."
    )
    rows_of_table = table(("prompts about", "sent to"), figures.items())
    return Picture(
        f"confusion_{gate}", f"{label(gate)}: per cent of prompts sent to each choice", alt, drawn, rows_of_table
    )


def _sites(run: Run, gate: str) -> Picture | None:
    choices = {facts.name: 1 + run.experts.index(facts.expert or "") for facts in run.domains}
    choices |= {facts.name: 0 for facts in run.others if facts.expert is None}
    rows, cells = heatmaps.right_weight(run.loads(gate), choices)
    if not cells:
        return None
    columns = [domain for domain in choices if any(key[1] == domain for key in cells)]
    words = {key: f"{100 * value:.0f}" for key, value in cells.items()}
    drawn, _ = heatmaps.heatmap(
        f"sites_{gate}", rows, columns, cells, words=words, labels=("layer and site", "prompts about")
    )
    alt = (
        f"Heatmap of the mean weight that {label(gate)} gives the right choice at each of {len(rows)} sites; "
        f"from {number(min(cells.values()))} to {number(max(cells.values()))}."
    )
    numbers = Table(
        ("site", *columns), tuple((row, *(number(cells.get((row, column))) for column in columns)) for row in rows)
    )
    title = f"{label(gate)}: mean weight on the right choice, per layer and site, per cent"
    return Picture(f"sites_{gate}", title, alt, drawn, numbers)


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
    return Picture(
        "growth_matrix",
        "Exact match on each domain after each stage, per cent",
        alt,
        drawn,
        table(("run", "stage", "domain"), rows),
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
