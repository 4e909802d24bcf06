"""The report of a run folder: report.html, report.md and figures/*.svg (the heatmaps of experts as PNG, too, for trackers)."""

from pathlib import Path

from pmemx.core.metric import Figure
from pmemx.report.html import html_of
from pmemx.report.markdown import markdown_of
from pmemx.report.page import Page
from pmemx.report.run import Run
from pmemx.report.sections import sections
from pmemx.report.style import standalone
from pmemx.report.tables import Table, pairs, table_of
from pmemx.report.verdict import findings


def write_report(run_folder: Path) -> Path:
    """Write the report beside the records it is made of, and return the path of report.html.

    Anything the records lack is left out and said so; the same records give the same bytes.
    Raises DataError where the folder has no readable record.json.
    """
    page = page_of(Run.read(run_folder))
    figures = run_folder / "figures"
    figures.mkdir(exist_ok=True)
    for section in page.shown:
        for picture in section.pictures:
            (figures / f"{picture.file}.svg").write_text(standalone(picture.svg), encoding="utf-8")
            if picture.png:
                (figures / f"{picture.file}.png").write_bytes(picture.png)
    (run_folder / "report.md").write_text(markdown_of(page), encoding="utf-8")
    path = run_folder / "report.html"
    path.write_text(html_of(page), encoding="utf-8")
    return path


def page_of(run: Run) -> Page:
    """Everything a report says, before it gets a form."""
    record = run.record
    counts = [
        (len(run.experts), "expert", "experts"),
        (len(run.domains), "domain", "domains"),
        (len(run.evidence.answers) if run.evidence else 0, "answer scored", "answers scored"),
    ]
    subtitle = [
        record.created.replace("T", " ").removesuffix("Z").removesuffix("+00:00"),
        f"base model {record.base.name}" if record.base else "",
        *(f"{count:,} {one if count == 1 else many}" for count, one, many in counts if count),
    ]
    return Page(
        record.experiment,
        " · ".join(part for part in subtitle if part),
        findings(run),
        sections(run),
        _facts(run),
        _appendix(run),
        record.notes,
        run.config,
        record.notice,
    )


def _facts(run: Run) -> tuple[tuple[str, Table], ...]:
    record = run.record
    made = {
        "created (UTC)": record.created,
        "plan": " → ".join(record.plan),
        "commit": record.commit,
        "config digest": record.config_digest,
        "base model": record.base.name if record.base else "",
        "fingerprint of the base": record.base.fingerprint if record.base else "",
    }
    blocks = tuple((block.name, str(block.version), block.domain, block.digest[:16]) for block in record.blocks)
    tables = {
        "Provenance": pairs("item", {name: value for name, value in made.items() if value}),
        "Seconds per stage": pairs("stage", {stage: f"{seconds:.1f}" for stage, seconds in record.seconds.items()}),
        "Seeds": pairs("seed", {name: str(seed) for name, seed in record.seeds.items()}),
        "Versions": pairs("package", dict(record.versions)),
        "Blocks in the bank": Table(("name", "version", "domain", "digest"), blocks, 4),
    }
    return tuple((title, found) for title, found in tables.items() if found.rows)


def _appendix(run: Run) -> tuple[tuple[str, Table], ...]:
    groups: dict[str, dict[str, Figure]] = {}
    for name, figure in run.record.figures.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest or group] = figure
    return tuple((group, table_of("figure", figures)) for group, figures in groups.items())
