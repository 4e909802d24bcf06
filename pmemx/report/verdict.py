"""The key numbers of a run in plain words."""

from collections.abc import Callable, Iterator

from pmemx.core.metric import Figure
from pmemx.report.page import Finding
from pmemx.report.run import Run
from pmemx.report.tables import number, percent


def findings(run: Run) -> tuple[Finding, ...]:
    """What a newcomer wants to know first; a question that the run did not measure is not asked."""
    parts = (_own, _recovery, _abstention, _general, _growth)
    return tuple(finding for part in parts for finding in part(run))


def _own(run: Run) -> Iterator[Finding]:
    if run.score == "exact" and (own := run.figure("specialisation/exact/own")):
        teacher = (
            f" The teacher, which reads the document, gets {percent(own.ceiling)}." if own.ceiling is not None else ""
        )
        chance = f" Guessing gives {percent(own.floor)}." if own.floor is not None else ""
        yield Finding(
            "Does an expert know its domain?",
            percent(own.value),
            f"of held-out questions on an expert's own domain are answered exactly right{_range(own)}.{teacher}{chance}",
        )
    if run.score == "loss" and (best := run.figure("specialisation/loss/own_is_best")):
        gain = run.figure("specialisation/loss/diagonal")
        saved = f" It saves {number(gain.value)} nats per token there against the base." if gain else ""
        yield Finding(
            "Is an expert the best on its domain?",
            percent(best.value),
            f"of domains are predicted best by their own expert{_range(best)}.{saved}",
        )


def _recovery(run: Run) -> Iterator[Finding]:
    found = run.figure(f"recovery/{run.score}/{run.gate}/all_domains")
    if found is None:
        return
    average = run.figure(f"recovery/{run.score}/average/all_domains")
    beside = f" A plain average of the experts recovers {percent(average.value)}." if average else ""
    yield Finding(
        "Does the gate find the right expert?",
        percent(found.value),
        f"of what perfect routing gains over the base model is recovered by the learned gate{_range(found)}.{beside}",
    )


def _abstention(run: Run) -> Iterator[Finding]:
    shares = {
        facts.name: figure
        for facts in run.others
        if (figure := run.figure(f"routing/{run.gate}/accuracy/{facts.name}/test")) is not None
    }
    if (away := run.figure(f"uncovered/{run.gate}/left_out/all_domains")) is not None:
        shares["domains while their own expert is barred"] = away
    if not shares:
        return
    worst = min(shares.values(), key=lambda figure: figure.value)
    each = ", ".join(f"{name} {percent(figure.value)}{_range(figure)}" for name, figure in shares.items())
    yield Finding(
        "Does the gate know what it does not know?",
        percent(worst.value),
        f"or more of the prompts that belong to no expert are left to the base model: {each}.",
    )


def _general(run: Run) -> Iterator[Finding]:
    loss = run.figure(f"forgetting_general/loss/{run.gate}")
    if loss is None:
        return
    points = run.figure(f"forgetting_general/exact/{run.gate}")
    accuracy = f" Exact answers change by {points.value:+.1f} points.".replace("-", "−") if points else ""
    between = (
        "" if loss.low is None or loss.high is None else f" (95\u00a0%: {number(loss.low)} to {number(loss.high)})"
    )
    yield Finding(
        "What does it cost elsewhere?",
        f"{number(loss.value)} nats",
        f"per token is the change of loss on general text with the gate on, against the base model{between}.{accuracy}",
    )


def _growth(run: Run) -> Iterator[Finding]:
    single = run.figure(f"sequential/{run.score}/sequential/forgetting")
    if single is None:
        return
    bank = run.figure(f"sequential/{run.score}/bank/forgetting")
    say = _points if run.score == "exact" else _nats
    beside = f" The bank with its gate forgets {say(bank.value)}{_range(bank, say)}." if bank else ""
    yield Finding(
        "What does growing one domain at a time forget?",
        say(single.value),
        f"is what a single LoRA trained on domain after domain loses of its best scores{_range(single, say)}.{beside} "
        "Under oracle routing a bank forgets nothing: old experts are never touched.",
    )


def _range(figure: Figure, say: Callable[[float], str] = percent) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f" (95\u00a0%: {say(figure.low)} to {say(figure.high)})"


def _points(value: float) -> str:
    return percent(value).replace("%", "points")


def _nats(value: float) -> str:
    return f"{number(value)} nats"
