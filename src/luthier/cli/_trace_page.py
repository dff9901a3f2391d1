"""One trace as a page: what was said, when what happened, what was decided, what people said of it, what made the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.core.trace import Feedback, Trace
    from luthier.store.database import Store

_COLOURS = {"system": "dim", "user": "cyan", "assistant": "green", "tool": "yellow"}
_NOT_DECISIONS = ("attempts", "tool_calls", "otel", "answer", "error", "response")


def show_trace(store: Store, trace: Trace, said: list[Feedback]) -> None:
    """Print the page."""
    _head(trace)
    _conversation(trace)
    _timing(trace)
    _decisions(trace)
    _feedback(trace, said)
    _lineage(store, trace)


def _head(trace: Trace) -> None:
    from rich.markup import escape

    from luthier.cli._print import show

    digest = f" [dim]{trace.model_digest[:12]}[/]" if trace.model_digest else ""
    show(
        f"[bold]{trace.id}[/]  {trace.created_at[:19].replace('T', ' ')} UTC  {trace.operation}  [bold]{escape(trace.model)}[/]{digest}"
    )
    otel = next((each.get("trace_id", "") for each in trace.details.get("otel", ())), "")
    named = (
        ("tenant", trace.tenant), ("key", trace.key_id), ("session", trace.session), ("route", trace.route),
        ("cache", trace.cache), ("OpenTelemetry trace", otel),
    )  # fmt: skip
    show("   ".join(f"[dim]{name}[/] {escape(str(value))}" for name, value in named if value))
    given = ", ".join(f"{name}={value}" for name, value in trace.parameters.items() if value not in (None, "", [], {}))
    if given:
        show(f"[dim]{escape(given)}[/]")


def _conversation(trace: Trace) -> None:
    from rich.markup import escape

    from luthier.cli._print import show
    from luthier.core.trace import text_of

    show("")
    for message in trace.messages:
        role = str(message.get("role", ""))
        show(f"[bold {_COLOURS.get(role, 'white')}]{escape(role)}[/]  {escape(text_of(message))}")
        for call in message.get("tool_calls") or ():
            show(f"  [yellow]calls[/] {escape(str(call.get('function', call)))}")
    if not trace.messages:
        show("[dim]the text of this request is not kept[/]")
    if trace.answer:
        show(f"[bold green]answer[/]  {escape(trace.answer)}")
    for call in trace.details.get("tool_calls", ()):
        show(f"[bold green]calls[/]  {escape(str(call.get('name')))}({escape(str(call.get('arguments')))})")
    if trace.error:
        show(f"[bold red]error[/]  {escape(trace.error)}")


def _timing(trace: Trace) -> None:
    from rich.markup import escape

    from luthier.cli._print import duration, show, table
    from luthier.gateway.watch.trace_plot import steps_of, waterfall

    first = f"first token {duration(trace.first_token_s)}, " if trace.first_token_s is not None else ""
    rate = ""
    if trace.first_token_s is not None and trace.completion_tokens > 1 and trace.latency_s > trace.first_token_s:
        rate = f", {(trace.completion_tokens - 1) / (trace.latency_s - trace.first_token_s):,.1f} tokens/s"
    cost = f", cost {trace.cost:.6f}" if trace.cost else ""
    ended = f", ended with {trace.finish_reason}" if trace.finish_reason else ""
    show(f"\n[bold]timing[/]  {first}in all {duration(trace.latency_s)}; "
         f"{trace.prompt_tokens:,} tokens in, {trace.completion_tokens:,} out{rate}{cost}{ended}")  # fmt: skip
    steps = steps_of(dict(trace.details))
    whole_s = max([trace.latency_s, *(end for *_, end in steps)])
    if steps:
        rows = [(escape(name), f"[cyan]{bar}[/]", seconds) for name, bar, seconds in waterfall(steps, whole_s)]
        show(table(("", f"0 s to {whole_s:.3f} s (· waited for its turn)", "seconds"), rows, right=("seconds",)))


def _decisions(trace: Trace) -> None:
    from rich.markup import escape

    from luthier.cli._print import show

    lines = []
    for layer, saids in trace.details.items():
        if layer in _NOT_DECISIONS or not isinstance(saids, list):
            continue
        for each in saids:
            pairs = each.items() if isinstance(each, dict) else [("", each)]
            said = ", ".join(
                f"{key}: {value}" for key, value in pairs if key != "at_s" and value not in (None, "", [], {})
            )
            lines.append(f"  [dim]{escape(layer)}[/]  {escape(said)}")
    if lines:
        show("\n[bold]decisions[/]\n" + "\n".join(lines))


def _feedback(trace: Trace, said: list[Feedback]) -> None:
    from rich.markup import escape

    from luthier.cli._print import show

    if not said:
        return
    show("\n[bold]feedback[/]")
    for each in said:
        show(f"  {escape(statement(each, trace.id))}  [dim]{each.id} {each.created_at[:19].replace('T', ' ')}[/]")


def statement(said: Feedback, trace_id: str) -> str:
    """What a piece of feedback says of the trace ``trace_id``."""
    parts: list[str] = [{1: "good", -1: "bad"}.get(said.rating or 0, "")]
    if said.over:
        parts.append(f"better than {said.over}" if said.trace_id == trace_id else f"worse than {said.trace_id}")
    named: list[tuple[str, Any]] = [("label", said.label), ("corrected", said.corrected), ("comment", said.comment)]
    parts += [f"{name}: {value}" for name, value in named if value]
    if said.event:
        parts.append(f"{said.event} ({'inferred' if said.source == 'inferred' else 'reported'}, not said)")
    return ", ".join(part for part in parts if part) + (f"; by {said.said_by}" if said.said_by else "")


def _lineage(store: Store, trace: Trace) -> None:
    from rich.tree import Tree

    from luthier.cli._print import show
    from luthier.cli.lineage import grow
    from luthier.store.lineage import lineage

    root = lineage(trace.id, store).tree("ancestors")
    if not root["children"]:
        return
    drawn = Tree("[bold]what made the answer[/]", guide_style="dim")
    for child in root["children"]:
        grow(drawn, child)
    show("")
    show(drawn)
