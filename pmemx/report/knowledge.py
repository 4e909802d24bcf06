"""Sections on what is known: by each expert, by their composition, and in which phrasings."""

from pmemx.core.metric import Figure
from pmemx.report import charts, heatmaps
from pmemx.report.page import Picture, Section
from pmemx.report.run import Run, label
from pmemx.report.tables import Table, number, table, table_of, with_interval


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
                figures[_row(method), domain] = found
    columns = [domain for domain in columns if any(key[1] == domain for key in figures)]
    references = [_row(method) for method in beside if any(key[0] == _row(method) for key in figures)]
    rows = [*run.experts, *references]
    cells, words, shade = *heatmaps.shares(figures), None
    if score == "loss":
        base = {domain: figures[_row("base"), domain].value for domain in columns if (_row("base"), domain) in figures}
        words = {key: f"{figure.value:.2f}" for key, figure in figures.items()}
        cells = {key: base.get(key[1], figure.value) - figure.value for key, figure in figures.items()}
        shade = heatmaps.by_gain(max(abs(value) for value in cells.values()))
    drawn = heatmaps.heatmap(
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
    legend = (
        "– was not measured: the teacher reads the document in context, so it is asked only where there is one; where "
        "prompts have no answer, nobody is."
        if drawn.gaps
        else ""
    )
    numbers = table(("expert", "domain"), keyed)
    return Picture(f"experts_{score}", title, alt, drawn.svg, numbers, drawn.png, drawn.labels, legend)


def _row(method: str) -> str:
    """The name of a row, short enough to stay in sight on a narrow page."""
    return "teacher" if method == "teacher" else label(method)


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
        "reliable has learnt the question, not the fact. A form is one way to put a prompt, named by the data; its figure is "
        "the mean over the domains that have it."
    )
    series: dict[str, dict[str, Figure]] = {}
    rows: dict[str, None] = {}
    shown: dict[str, None] = {}
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
                rows[f"{words} · {form}"] = shown[form] = None
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
    told = run.evidence.forms if run.evidence else {}
    asked = tuple((form, told[form]) for form in shown if form in told)
    in_words = (("What the forms ask", Table(("form", "prompt"), asked, 2)),) if asked else ()
    return Section(key, title, text, (picture,), in_words)
