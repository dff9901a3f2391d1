"""``luthier traces``: look at what was asked and answered, one by one, as it comes, or in figures; delete what is old."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from luthier.core.trace import Trace
    from luthier.store.trace_query import TraceFilter

SHOWN = 60
POLL_S = 0.5

Model = Annotated[str | None, typer.Option(help="Only this model's.")]
Route = Annotated[str | None, typer.Option(help="Only of this route.")]
Tenant = Annotated[str | None, typer.Option(help="Only this tenant's.")]
Session = Annotated[str | None, typer.Option(help="Only of this session.")]
Key = Annotated[str | None, typer.Option(help="Only of this key (its id).")]
User = Annotated[str | None, typer.Option(help="Only of this user, as the application calls them.")]
Operation = Annotated[str | None, typer.Option(help="chat, completion, embedding or rerank.")]
Since = Annotated[str | None, typer.Option(help="From then on: 30m, 2h, 7d ago, a date, or an ISO time.")]
Until = Annotated[str | None, typer.Option(help="Before then.")]
Errors = Annotated[bool, typer.Option("--errors", help="Only what failed.")]
MinLatency = Annotated[float | None, typer.Option("--min-latency-s", min=0.0, help="Only what took at least so long.")]
Text = Annotated[str | None, typer.Option(help="Only where this stands in a message or the answer.")]
Feedback = Annotated[
    str | None, typer.Option(help="any, none, good, bad, corrected or implicit: only with such feedback.")
]
FinishReason = Annotated[str | None, typer.Option(help="stop, length, tool_calls, content_filter.")]
Guardrail = Annotated[str | None, typer.Option(help="Only where this guardrail (or any) decided something.")]
Cache = Annotated[str | None, typer.Option(help="Only answers out of this cache: exact, semantic or any.")]
AsJson = Annotated[bool, typer.Option("--json", help="Everything, as JSON.")]
FILTERS = (
    "model", "route", "tenant", "session", "key", "user", "operation", "since", "until", "errors", "min_latency_s", "text",
    "feedback", "finish_reason", "guardrail", "cache",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands."""
    made = typer.Typer(
        name="traces",
        help="What was asked and answered: list it, show one, follow, count, delete what is old.",
        invoke_without_command=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(traces)
    made.command("list")(list_command)
    made.command("show")(show_command)
    made.command("tail")(tail_command)
    made.command("stats")(stats_command)
    made.command("purge")(purge_command)
    app.add_typer(made)


def traces(
    context: typer.Context,
    model: Model = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the latest traces of served requests (`luthier traces list` has all filters)."""
    if context.invoked_subcommand is None:
        _list(_filter({"model": model}), limit, as_json)


def list_command(
    *,
    model: Model = None,
    route: Route = None,
    tenant: Tenant = None,
    session: Session = None,
    key: Key = None,
    user: User = None,
    operation: Operation = None,
    since: Since = None,
    until: Until = None,
    errors: Errors = False,
    min_latency_s: MinLatency = None,
    text: Text = None,
    feedback: Feedback = None,
    finish_reason: FinishReason = None,
    guardrail: Guardrail = None,
    cache: Cache = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List traces, the newest first."""
    _list(_filter(locals()), limit, as_json)


def show_command(
    trace: Annotated[
        str, typer.Argument(metavar="TRACE", help="A trace's id, or the start of it; latest: the newest.")
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Show one trace: messages, answer, timing, decisions on the way, what was said of it, what made its model."""
    from dataclasses import asdict

    from luthier.cli._print import show_json
    from luthier.cli._trace_page import show_trace
    from luthier.store.database import open_store
    from luthier.store.feedback import feedback_on

    store = open_store()
    found = _find(trace)
    said = feedback_on(store, found.id)
    if as_json:
        show_json(asdict(found) | {"feedback": [asdict(each) for each in said]})
    else:
        show_trace(store, found, said)


def tail_command(
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on: show each new trace as it is written.")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last.")] = 10,
    model: Model = None,
    route: Route = None,
    tenant: Tenant = None,
    session: Session = None,
    errors: Errors = False,
    min_latency_s: MinLatency = None,
    text: Text = None,
    guardrail: Guardrail = None,
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Show the last traces, oldest first, and with --follow those that come; Ctrl-C ends it."""
    wanted = _filter(locals())
    import time

    from luthier.store.database import open_store
    from luthier.store.trace_query import follow_traces

    def wait() -> bool:
        if follow:
            time.sleep(POLL_S)
        return follow

    try:
        for trace in follow_traces(open_store(), wanted, wait=wait, last=lines):
            _line(trace, as_json)
    except KeyboardInterrupt:
        return


def stats_command(
    *,
    by: Annotated[
        list[str] | None,
        typer.Option(help="model, day, hour, route, operation, cache or finish_reason; may be repeated."),
    ] = None,
    model: Model = None,
    route: Route = None,
    tenant: Tenant = None,
    session: Session = None,
    key: Key = None,
    operation: Operation = None,
    since: Since = None,
    until: Until = None,
    plot: Annotated[bool, typer.Option(help="Draw seconds an answer over time.")] = True,
    png: Annotated[Path | None, typer.Option(help="Write a picture of requests and times to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count traces: p50, p95 and p99 of seconds to the first token and in all, tokens, cost, errors, by model and day."""
    wanted = _filter(locals())
    from luthier.cli import _print
    from luthier.gateway.watch.trace_plot import bins_of, save, text
    from luthier.store.database import open_store
    from luthier.store.trace_query import measure_traces
    from luthier.store.trace_stats import trace_stats

    store, groups = open_store(), tuple(by or ("model", "day"))
    stats = trace_stats(store, wanted, groups)
    if as_json:
        _print.show_json([dict(zip(groups, each.group, strict=True)) | each.as_dict() for each in stats])
    elif not stats:
        _print.say("No traces that fit.")
    else:
        _print.show(_stats_table(stats, groups))
    if not stats or (as_json and png is None):
        return
    bins = bins_of(measure_traces(store, wanted))
    if plot and not as_json and len(bins) > 1:
        width = min(_print.out().width, 100)
        _print.out().out(text(bins, width=width, colour=_print.out().is_terminal), highlight=False)
    if png is not None:
        save(bins, png)
        _print.say(f"wrote {png}")


def purge_command(
    *,
    days: Annotated[float | None, typer.Option(min=0.0, help="Delete what is older.")] = None,
    max_rows: Annotated[int | None, typer.Option(min=0, help="Keep only so many, the newest.")] = None,
    model: Model = None,
    tenant: Tenant = None,
    session: Session = None,
    key: Key = None,
    user: User = None,
    since: Since = None,
    until: Until = None,
    text: Text = None,
    rated_too: Annotated[
        bool, typer.Option("--all", help="Also those with feedback (and the feedback), which stay otherwise.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete traces for good, a few at a time: old ones, or those that filters fit (one user's, for example)."""
    wanted = _filter(locals())
    from luthier.cli import _print
    from luthier.core.errors import InputError
    from luthier.store.database import open_store
    from luthier.store.retention import count_traces, purge
    from luthier.store.trace_query import TraceFilter

    store = open_store()
    matching = None if wanted == TraceFilter() else wanted
    if days is None and max_rows is None and matching is None:
        raise InputError("say which traces go: --days, --max-rows, or a filter", hint="luthier traces purge --days 30")
    if not yes:
        if not _print.err().is_terminal:
            raise InputError("purge deletes for good and asks before it does", hint="add --yes")
        typer.confirm(f"Delete from {count_traces(store):,} traces?", abort=True, err=True)
    done = purge(store, days=days, max_rows=max_rows, matching=matching, rated_too=rated_too)
    kept = f", {done.kept:,} kept for their feedback (--all deletes them too)" if done.kept and not rated_too else ""
    _print.say(f"deleted {done.traces:,} traces and {done.feedback:,} statements on them{kept}")


def _filter(given: dict[str, Any]) -> TraceFilter:
    """The filter that a command's parameters say: to be called before the command has other names."""
    from luthier.store.trace_query import TraceFilter

    return TraceFilter(**{name: given[name] for name in FILTERS if name in given})


def _list(wanted: TraceFilter, limit: int, as_json: bool) -> None:
    from dataclasses import asdict

    from luthier.cli._print import say, show, show_json
    from luthier.store.database import open_store
    from luthier.store.trace_query import TraceFilter, query_traces

    found = query_traces(open_store(), wanted, limit=limit)
    if as_json:
        show_json([asdict(trace) for trace in found])
    elif found:
        show(_table(found))
    elif wanted == TraceFilter():
        say("No traces yet; `luthier serve MODEL` makes one for each request.")
    else:
        say("No traces that fit; `luthier traces` shows the latest.")


def _find(which: str) -> Trace:
    """The trace that is meant. Raises NotFoundError, InputError when several begin so."""
    from luthier.core.errors import InputError, NotFoundError
    from luthier.store.database import open_store
    from luthier.store.trace_query import query_traces, starting_with
    from luthier.store.traces import find_trace

    store = open_store()
    if which == "latest":
        newest = query_traces(store, limit=1)
        if not newest:
            raise NotFoundError("there are no traces yet", hint="luthier serve MODEL")
        return newest[0]
    ids = starting_with(store, which)
    if which not in ids and len(ids) > 1:
        raise InputError(f"{which!r} is the start of several traces: {', '.join(ids[:5])}")
    return find_trace(store, which if which in ids or not ids else ids[0])


def _line(trace: Trace, as_json: bool) -> None:
    import sys
    from dataclasses import asdict

    from rich.markup import escape

    from luthier.cli._print import duration, out
    from luthier.store.database import to_json

    if as_json:
        sys.stdout.write(to_json(asdict(trace)) + "\n")
        sys.stdout.flush()
        return
    said = f"[red]{escape(_short(trace.error))}[/]" if trace.error else escape(_short(trace.answer))
    marks = "".join(
        f" [cyan]{escape(mark)}[/]" for mark in (trace.cache and f"cache {trace.cache}", trace.route) if mark
    )
    out().print(
        f"[dim]{trace.created_at[11:19]}[/] [bold]{escape(trace.model)}[/]{marks} "
        f"[dim]{trace.prompt_tokens}+{trace.completion_tokens} {duration(trace.latency_s)}[/] "
        f"{escape(_short(_question(trace)))} [dim]->[/] {said} [dim]{trace.id}[/]",
        soft_wrap=True,
    )


def _table(found: list[Trace]) -> RenderableType:
    from rich.markup import escape

    from luthier.cli._print import duration, table

    rows = [
        (
            trace.id,
            trace.created_at[:19].replace("T", " "),
            escape(trace.model),
            trace.operation,
            escape(_short(_question(trace))),
            escape(_short(trace.answer)) if not trace.error else f"[red]{escape(_short(trace.error))}[/]",
            f"{trace.prompt_tokens}+{trace.completion_tokens}",
            duration(trace.latency_s),
        )
        for trace in found
    ]
    columns = ("trace", "time (UTC)", "model", "kind", "question", "answer", "tokens", "took")
    return table(columns, rows, right=("tokens", "took"))


def _stats_table(stats: list[Any], by: tuple[str, ...]) -> RenderableType:
    from rich.markup import escape

    from luthier.cli._print import table

    def times(values: tuple[float, ...] | None) -> list[str]:
        return [f"{value:.3f}" for value in values] if values is not None else [""] * 3

    rows = [
        (
            *map(escape, each.group),
            f"{each.requests:,}",
            f"[red]{each.errors:,}[/]" if each.errors else "0",
            *times(each.ttft_s),
            *times(each.latency_s),
            f"{each.tokens_per_s:,.1f}" if each.tokens_per_s is not None else "",
            f"{each.prompt_tokens:,}",
            f"{each.completion_tokens:,}",
            f"{each.cost:.4f}" if each.cost else "",
        )
        for each in stats
    ]
    figures = [
        "requests",
        "errors",
        "ttft p50",
        "p95",
        "p99",
        "took p50",
        "p95 ",
        "p99 ",
        "tokens/s",
        "in",
        "out",
        "cost",
    ]
    return table([*by, *figures], rows, right=figures)


def _question(trace: Trace) -> str:
    from luthier.core.trace import asked_last

    return asked_last(trace)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
