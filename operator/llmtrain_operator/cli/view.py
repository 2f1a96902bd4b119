"""A job's report as text: a table of many jobs, a page about one, a line for a log. Pure; `now` is a parameter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llmtrain_operator.cli.report import Happening, JobReport
from llmtrain_operator.progress import duration
from llmtrain_operator.state import PodView

_STYLES: Final = {
    "Running": "green",
    "Complete": "bold green",
    "Failed": "bold red",
    "Invalid": "bold red",
    "Recovering": "yellow",
    "Resizing": "yellow",
    "Suspended": "blue",
}
# Conditions whose message is worth a line while they have this status.
_TELLING: Final = {
    "Valid": "False",
    "Scheduled": "False",
    "Running": "False",
    "Suspended": "False",
    "Resizing": "True",
    "Durable": "False",
    "PreflightPassed": "False",
    "Fits": "False",
    "Straggling": "True",
    "Tracked": "False",
}
_COLOURS: Final = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")
_LAST_EVENTS: Final = 5
_LAST_TRACEBACK_LINES: Final = 12


def jobs_table(reports: Sequence[JobReport], now: float, *, namespaces: bool) -> RenderableType:
    """One row per job, like `kubectl get` with more to read."""
    if not reports:
        return Text("no jobs")
    table = _grid(header=True)
    heads = ("JOB", "STATE", "MEMBERS", "STEP", "LOSS", "TOKENS/S", "ETA", "GOODPUT", "RESTARTS", "AGE")
    for head in (("NAMESPACE",) if namespaces else ()) + heads:
        table.add_column(head)
    for each in sorted(reports, key=lambda each: (each.namespace, each.name)):
        status, progress = each.status, each.status.progress
        cells = (
            *((each.namespace,) if namespaces else ()),
            each.name,
            _state(each),
            status.nodes,
            _steps(each),
            number(progress.loss if progress else None),
            count(progress.tokens_per_second if progress else None),
            (progress.eta if progress and not each.ended else None) or "",
            status.goodput or "",
            str(status.restarts),
            duration(max(0.0, now - each.created)),
        )
        table.add_row(*cells)
    return table


def page(each: JobReport, now: float, *, bar: bool) -> RenderableType:
    """All about one job. `bar`: draw a progress bar, for terminals."""
    heading = Text.assemble(
        (each.name, "bold"), "  ", _state(each), f"  namespace {each.namespace}", f"  age {_age(each, now)}"
    )
    parts: list[RenderableType] = [heading, *_progress(each, bar=bar), *_health(each)]
    if each.pods:
        parts += [Text(""), _members(each)]
    if each.events:
        parts += [Text(""), _events(each.events[-_LAST_EVENTS:], now)]
    return Group(*parts)


def line(each: JobReport) -> str:
    """The state of training in one line, for a log."""
    progress = each.status.progress
    parts = [each.state]
    if each.max_steps or each.step:
        parts.append(f"step {_steps(each)}")
    if progress:
        parts += [f"loss {number(progress.loss)}"] if progress.loss is not None else []
        parts += [f"{count(progress.tokens_per_second)} tokens/s"] if progress.tokens_per_second else []
        parts += [f"ETA {progress.eta}"] if progress.eta and not each.ended else []
    parts += [f"members {each.status.nodes}"] if each.status.nodes else []
    parts += [f"restarts {each.status.restarts}"] if each.status.restarts else []
    return "  ".join(parts)


def event_line(event: Happening) -> str:
    """An event in one line, for a log."""
    about = f"{event.about}: " if event.about else ""
    return f"{'! ' if event.warning else '  '}{about}{event.reason}: {event.message}"


def events_table(events: Sequence[Happening], now: float) -> RenderableType:
    """One row per event, the newest last, with what it is about."""
    if not events:
        return Text("no events: the API server keeps them for an hour, unless it is told otherwise")
    table = _grid(header=True)
    for head in ("AGE", "REASON", "ABOUT", "MESSAGE"):
        table.add_column(head)
    for event in events:
        repeats = f" (x{event.count})" if event.count > 1 else ""
        reason = Text(event.reason + repeats, "yellow" if event.warning else "")
        age = duration(max(0.0, now - event.time))
        table.add_row(age, reason, event.about or "the job", Text(event.message))
    return table


def incidents_table(each: JobReport) -> RenderableType:
    """One row per incident, the newest last; seconds since the fault, and of training that it cost in all."""
    met = next((c for c in each.status.conditions if c.type == "ObjectivesMet"), None)
    if not each.status.incidents:
        return Text("no incidents: no round was lost")
    table = _grid(header=True)
    for head in (
        "#",
        "TIME",
        "REASON",
        "MEMBER",
        "DETECTED",
        "NEXT ROUND",
        "NEXT STEP",
        "COST",
        "LOST STEPS",
        "MESSAGE",
    ):
        table.add_column(head)
    for one in each.status.incidents:
        otherwise = one.outcome or "not yet"
        times = one.detect_seconds, one.round_seconds, one.train_seconds
        after = (otherwise if value is None else f"{value:.1f}s" for value in times)
        lost = "" if one.lost_steps is None else str(one.lost_steps)
        member = "" if one.member < 0 else str(one.member)
        cost = f"{sum(one.badput.values()):.1f}s" if one.badput else ""
        table.add_row(str(one.number), one.time, one.reason, member, *after, cost, lost, one.message)
    return Group(table, Text(f"{met.reason}: {met.message}")) if met else table


def member_colour(index: int) -> str:
    """The colour of a member's lines in a log."""
    return _COLOURS[index % len(_COLOURS)]


def number(value: float | None) -> str:
    """A value with as many digits as tell something; empty if there is none."""
    return "" if value is None else f"{value:.4g}"


def count(value: float | None) -> str:
    """A large number with thousands separated; empty if there is none."""
    return "" if value is None else f"{value:,.0f}"


def _state(each: JobReport) -> Text:
    return Text(each.state, _STYLES.get(each.state, ""))


def _age(each: JobReport, now: float) -> str:
    return duration(max(0.0, now - each.created))


def _steps(each: JobReport) -> str:
    return f"{each.step}/{each.max_steps}" if each.max_steps else (str(each.step) if each.step else "")


def _progress(each: JobReport, *, bar: bool) -> Iterable[RenderableType]:
    progress = each.status.progress
    if each.max_steps:
        share = each.step / each.max_steps
        left = f"  ETA {progress.eta}" if progress and progress.eta and not each.ended else ""
        words = Text(f"step {_steps(each)}  {share:.0%}{left}")
        if bar:
            row = Table.grid(padding=(0, 2))
            row.add_row(ProgressBar(total=each.max_steps, completed=each.step, width=40), words)
            yield row
        else:
            yield words
    if progress is None:
        return
    facts = {
        "phase": progress.phase if progress.phase != "training" else "",
        "loss": number(progress.loss),
        "validation loss": number(progress.validation_loss),
        "perplexity": number(progress.perplexity),
        "tokens/s": count(progress.tokens_per_second),
        "lr": number(progress.learning_rate),
        "gradient norm": number(progress.gradient_norm),
        "MFU": f"{progress.mfu:.1%}" if progress.mfu else "",
    }
    yield Text("  ".join(f"{name} {value}" for name, value in facts.items() if value))


def _health(each: JobReport) -> Iterable[RenderableType]:
    status = each.status
    facts = [f"members {status.nodes}"] if status.nodes else []
    facts += [f"spares ready {status.spares}"] if status.spares is not None else []
    facts += [f"goodput {status.goodput}"] if status.goodput else []
    facts.append(f"restarts {status.restarts}")
    yield Text("  ".join(facts))
    if each.state == "Unseen":
        yield Text("the operator has not looked at this job yet: is it running?", "yellow")
    told: set[str] = set()
    for condition in status.conditions:
        news = (
            _TELLING.get(condition.type) == condition.status and not each.ended and condition.reason != "NotSuspended"
        )
        if condition.message not in told | {""} and (news or (condition.type == each.state and each.ended)):
            told.add(condition.message)
            yield Text.assemble((f"{condition.reason}: ", "bold"), condition.message)
    for node in status.avoided_nodes if not each.ended else ():
        yield Text(f"node {node.node} is avoided until {node.until}: {node.reason}, {node.failures} failures", "yellow")
    failure = status.last_failure
    if failure and (each.state == "Failed" or not each.ended):
        where = f"member {failure.member}, rank {failure.rank}, step {failure.step}"
        yield Text.assemble(("last failure: ", "bold"), f"{failure.reason} ({where}): {failure.message}")
        if failure.traceback and each.state == "Failed":
            yield Text("\n".join(failure.traceback.rstrip().splitlines()[-_LAST_TRACEBACK_LINES:]), "dim")


def _members(each: JobReport) -> RenderableType:
    current = each.status.round
    ranks = {member.uid: str(rank) for rank, member in enumerate(current.members)} if current else {}
    whole = current is not None and len(current.members) >= (each.status.target_nodes or 0)
    others = "spare" if each.status.spares is not None and whole else "-"
    table = _grid(header=True)
    for head in ("MEMBER", "RANK", "POD", "NODE", "STATE"):
        table.add_column(head)
    for pod in each.pods:
        if pod.uid in ranks or pod.phase not in ("Failed", "Succeeded") or each.ended:
            table.add_row(str(pod.index), ranks.get(pod.uid, others), pod.name, pod.node or "-", pod_state(pod))
    return table


def pod_state(pod: PodView) -> str:
    """What a pod is doing, with the reason if it is not working."""
    if pod.deleting:
        return "Terminating"
    if not pod.scheduled and pod.phase == "Pending":
        return f"Unscheduled: {pod.unschedulable_message}" if pod.unschedulable_message else "Unscheduled"
    return f"{pod.phase} ({pod.reason})" if pod.reason else pod.phase


def _events(events: Sequence[Happening], now: float) -> RenderableType:
    table = _grid(header=False)
    for _ in range(3):
        table.add_column()
    for event in events:
        repeats = f" (x{event.count})" if event.count > 1 else ""
        style = "yellow" if event.warning else ""
        ago = f"{duration(max(0.0, now - event.time))} ago"
        table.add_row(ago, Text(event.reason + repeats, style), Text(event.message))
    return table


def _grid(*, header: bool) -> Table:
    return Table(box=None, show_header=header, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
