"""One run from its composed config: build the stages, run them, keep the record, write the report, print the summary."""

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from pmemx.core.errors import ConfigError
from pmemx.core.extras import install
from pmemx.core.metric import Figure
from pmemx.core.record import RunRecord
from pmemx.core.stage import Ledger, Stage, Workspace
from pmemx.core.store import Store
from pmemx.lit.tracking import Tracker, keep_under
from pmemx.stage.build import build
from pmemx.stage.origin import commit, experiment_digest, seeds, settings_digest, versions
from pmemx.stage.plan import Outcome, run_plan, write_csv
from pmemx.stage.progress import RichProgress
from pmemx.stage.quiet import quiet
from pmemx.stage.summary import methods_table, stages_table

WriteReport = Callable[[Path], Path]
"""Makes the report of a run folder and returns its path."""


def launch(config: DictConfig, write_report: WriteReport, *, console: Console | None = None) -> tuple[Outcome, ...]:
    """Run the stages of config.plan in config.run_folder, and end with a summary and the path of the report.

    config holds experiment, notice, plan (names of stages), stage (their nodes by name), seed, run_folder, logger (nodes
    by name, or null) and summary (see methods_table). record.json is written after every stage, so that a run cut short leaves what it knew.
    """
    quiet()
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    folder = Path(settings["run_folder"]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    keep_under(folder / "wandb")
    console = console or Console(width=None if sys.stdout.isatty() else 140)
    workspace = Workspace(folder, settings["seed"], RichProgress(console))
    stages: dict[str, Stage] = {name: build(settings["stage"][name]) for name in settings["plan"]}
    tracker = Tracker([_logger(name, node) for name, node in (settings["logger"] or {}).items()])
    record = RunRecord(
        experiment=str(settings["experiment"]),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        plan=tuple(settings["plan"]),
        commit=commit(),
        config_digest=settings_digest(settings),
        experiment_digest=experiment_digest(settings),
        seeds=seeds(settings),
        versions=versions(),
        notice=str(settings["notice"]),
    )
    sent = 0

    def after(outcomes: tuple[Outcome, ...]) -> None:
        nonlocal sent
        _filled(record, workspace.ledger, outcomes).write(folder)
        points = workspace.metrics.read()
        tracker.points(points[sent:])
        sent = len(points)

    success = False
    try:
        tracker.config(settings)
        outcomes = run_plan(stages, workspace, after=after)
        replaced = replaced_blocks(settings.get("store"), workspace.ledger, record.created)
        if replaced:
            workspace.ledger.notes.append(replaced)
            after(outcomes)
        write_csv(workspace.metrics)
        report = write_report(folder)
        _publish(tracker, workspace, settings, report)
        success = True
    finally:
        tracker.close(success=success)
    console.print(stages_table(outcomes))
    table = methods_table(workspace.ledger.figures, settings["summary"])
    if table.row_count:
        console.print(table)
    for note in filter(None, (record.notice, *workspace.ledger.notes)):
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {report}", soft_wrap=True, highlight=False)
    return outcomes


def _logger(name: str, node: dict[str, Any]) -> Any:
    try:
        return build(node)
    except ModuleNotFoundError as error:
        remedy = f"run: {install('tensorboard')}" if name == "tensorboard" else "install what that names"
        raise ConfigError(
            f"logger.{name} needs a package ({error}); {remedy}, or choose another logger (pmemx list logger)"
        ) from error


def replaced_blocks(store: object, ledger: Ledger, since: str) -> str:
    """A sentence on the names that had a version before this run and have a newer one by it; empty where there is none.

    store: the node of the run's store, or None. since: when the run began, as a card says when its block was made.
    """
    names = dict.fromkeys(block.name for block in ledger.blocks.values())
    if store is None or not names:
        return ""
    made = {block.digest for block in ledger.blocks.values()}
    kept: Store = build(store)
    moves = []
    for name in names:
        history = kept.history(name)
        new = [version for version in history if version.digest in made and version.card.created >= since]
        old = [version for version in history if version not in new and version.card.created < since]
        if new and old and new[-1] is history[-1]:
            moves.append(f"{name}@{new[-1].number} (before: {name}@{old[-1].number})")
    if not moves:
        return ""
    return (
        f"this run made the latest version of what the bank held already: {', '.join(moves)}; "
        "the earlier versions stay, and bank_folder=<folder> gives a run a bank of its own"
    )


def _filled(record: RunRecord, ledger: Ledger, outcomes: tuple[Outcome, ...]) -> RunRecord:
    return replace(
        record,
        seconds={outcome.stage: outcome.seconds for outcome in outcomes},
        base=ledger.base,
        blocks=tuple(ledger.blocks.values()),
        figures=ledger.figures,
        notes=tuple(ledger.notes),
    )


def _publish(tracker: Tracker, workspace: Workspace, settings: dict[str, Any], report: Path) -> None:
    """Figures as a table, images, the report and the bank, for loggers that can show them."""
    columns = [field.name for field in fields(Figure)]
    rows = [
        [name, *(getattr(figure, column) for column in columns)] for name, figure in workspace.ledger.figures.items()
    ]
    if rows:
        tracker.table("figures", ["name", *columns], rows)
    for image in sorted((workspace.folder / "figures").glob("*.png")):
        tracker.image(image.stem, image)
    tracker.artifact("report", "report", report)
    store = settings.get("store") or {}
    if workspace.ledger.blocks and "path" in store:
        tracker.artifact("bank", "bank", Path(store["path"]))
