"""``luthier traces``: what was asked and answered lately."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from luthier.core.trace import Trace

SHOWN = 60


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("traces")(traces)


def traces(
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """List the latest traces of served requests."""
    from dataclasses import asdict

    from luthier.cli._print import say, show, show_json
    from luthier.store.database import open_store
    from luthier.store.traces import list_traces

    found = list_traces(open_store(), model=model, limit=limit)
    if as_json:
        show_json([asdict(trace) for trace in found])
    elif found:
        show(_table(found))
    else:
        whose = f" of {model}" if model else ""
        say(f"No traces{whose} yet; `luthier serve MODEL` makes one for each request.")


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


def _question(trace: Trace) -> str:
    asked = [str(each.get("content", "")) for each in trace.messages if each.get("role") == "user"]
    return asked[-1] if asked else ""


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
