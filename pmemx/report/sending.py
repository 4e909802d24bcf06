"""The section on routing: which choice each domain's prompts get, and how sure each site is."""

from pmemx.report import heatmaps
from pmemx.report.page import Picture, Section
from pmemx.report.run import NO_EXPERT, Run, label
from pmemx.report.tables import Table, number, table, table_of


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
    drawn = heatmaps.heatmap(
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
    empty = " – is a choice that this gate did not have." if drawn.gaps else ""
    return Picture(
        f"confusion_{gate}",
        f"{label(gate)}: per cent of prompts sent to each choice",
        alt,
        drawn.svg,
        rows_of_table,
        labels=drawn.labels,
        legend=f"The framed cells are the right choice. In an empty cell no prompt was sent there.{empty}",
    )


def _sites(run: Run, gate: str) -> Picture | None:
    choices = {facts.name: 1 + run.experts.index(facts.expert or "") for facts in run.domains}
    choices |= {facts.name: 0 for facts in run.others if facts.expert is None}
    rows, cells = heatmaps.right_weight(run.loads(gate), choices)
    if not cells:
        return None
    columns = [domain for domain in choices if any(key[1] == domain for key in cells)]
    words = {key: heatmaps.share(value) for key, value in cells.items()}
    names = heatmaps.folded(rows, columns, words)
    drawn = heatmaps.heatmap(
        f"sites_{gate}",
        list(names.values()),
        columns,
        {(names[row], column): value for (row, column), value in cells.items() if row in names},
        words={(names[row], column): word for (row, column), word in words.items() if row in names},
        labels=("layer and site", "prompts about"),
    )
    alt = (
        f"Heatmap of the mean weight that {label(gate)} gives the right choice at each of {len(rows)} sites; "
        f"from {number(min(cells.values()))} to {number(max(cells.values()))}."
    )
    numbers = Table(
        ("site", *columns), tuple((row, *(number(cells.get((row, column))) for column in columns)) for row in rows)
    )
    title = f"{label(gate)}: mean weight on the right choice, per layer and site, per cent"
    legend = (
        "Neighbouring rows that agree are drawn as one, with their number in brackets."
        if len(names) < len(rows)
        else ""
    )
    return Picture(f"sites_{gate}", title, alt, drawn.svg, numbers, labels=drawn.labels, legend=legend)
