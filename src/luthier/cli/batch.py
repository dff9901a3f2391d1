"""``luthier batch``: files of requests, here and now or as servers work on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from luthier.core.batch import BatchRecord
    from luthier.gateway.batch.offline import BatchSummary

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Batch = Annotated[str, typer.Argument(metavar="BATCH", help="Its id.")]
_COLOURS = {"completed": "green", "failed": "red", "expired": "yellow", "cancelled": "yellow", "in_progress": "cyan"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    batch = typer.Typer(
        help="Files of requests: `run` answers one without a server; list, show and cancel are for those that servers work on (/v1/batches).",
        no_args_is_help=True,
    )
    app.add_typer(batch, name="batch")
    batch.command()(run)
    _register_served(batch)


def run(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT.jsonl", help="OpenAI batch lines, or rows with messages or a prompt.")
    ],
    *,
    model: Annotated[str, typer.Option("--model", "-m", help="A model, an adapter or an endpoint (luthier models).")],
    output: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="OUT.jsonl", help="Where the answers go; one that is there is gone on with."
        ),
    ],
    engine: Annotated[str, typer.Option(help="auto, torch, llamacpp, openai or fake.")] = "auto",
    rows: Annotated[int, typer.Option(min=1, help="Lines that go to the engine together.")] = 32,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="For lines that do not say.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0, help="For lines that do not say.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin again.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask lines again that failed in an earlier run.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Answer a file of requests without a server. Interrupted, the same command goes on where it stopped.

    Ends with 0 when every line is answered, 1 when some failed (their rows say why), 2 for a broken file.
    """
    from dataclasses import asdict

    from luthier.cli._print import progress, show_json
    from luthier.gateway.batch.offline import run_batch

    said = {"max_tokens": max_tokens, "temperature": temperature}
    with progress() as drawn:
        summary = run_batch(
            source,
            output,
            model=model,
            engine=engine,
            rows=rows,
            defaults={name: value for name, value in said.items() if value is not None},
            overwrite=overwrite,
            retry_failed=retry_failed,
            progress=drawn,
        )
    if as_json:
        show_json(asdict(summary))
    else:
        _tell(summary, output)
    if summary.failed:
        raise typer.Exit(1)


def _tell(summary: BatchSummary, output: Path) -> None:
    from luthier.cli._print import duration, out, warn

    said = [f"{summary.completed:,} answered"]
    said += [f"{summary.kept:,} were there"] if summary.kept else []
    said += [f"{summary.failed:,} failed"] if summary.failed else []
    if summary.seconds > 0:
        tokens = summary.prompt_tokens + summary.completion_tokens
        lines = (summary.completed + summary.failed) / summary.seconds
        said.append(f"{duration(summary.seconds)}, {lines:,.1f} lines/s, {tokens / summary.seconds:,.0f} tokens/s")
    out().print(f"{output}: {', '.join(said)}", markup=False)
    for message, count in sorted(summary.errors.items(), key=lambda each: -each[1])[:5]:
        warn(f"{count:,} times: {message}")


def _register_served(batch: typer.Typer) -> None:
    @batch.command("list")
    def list_all(
        tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
        limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
        as_json: _Json = False,
    ) -> None:
        """List batches of servers."""
        from luthier.cli._print import say, show, show_json
        from luthier.store.batches import list_batches
        from luthier.store.database import open_store

        found = list_batches(open_store(), tenant, limit=limit)
        if as_json:
            show_json([{**each.as_dict(), "tenant": each.tenant} for each in found])
        elif found:
            show(_table(found))
        else:
            say("No batches yet: clients make them with /v1/batches; `luthier batch run` needs no server.")

    @batch.command()
    def show(batch_id: _Batch, as_json: _Json = False) -> None:
        """Show how far a batch is, and why it failed."""
        from luthier.cli._print import out, show_json
        from luthier.store.batches import find_batch
        from luthier.store.database import open_store

        found = find_batch(open_store(), batch_id)
        if as_json:
            show_json({**found.as_dict(), "tenant": found.tenant})
            return
        about: dict[str, Any] = {
            "id": found.id, "tenant": found.tenant, "key": found.key_id, "endpoint": found.endpoint, "status": found.status,
            "lines": f"{found.completed:,} answered, {found.failed:,} failed of {found.total:,}", "created": found.created_at,
            **found.times, "expires": found.expires_at, "input": found.input_file, "output": found.output_file,
            "errors": found.error_file,
        }  # fmt: skip
        for name, value in about.items():
            if value:
                out().print(f"{name:<12} {value}", markup=False)
        for each in found.errors:
            where = f"line {each['line']}: " if each["line"] else ""
            out().print(f"{where}{each['message']}", markup=False)

    @batch.command()
    def cancel(batch_id: _Batch) -> None:
        """Have a server stop a batch; what is answered stays."""
        from luthier.cli._print import out
        from luthier.store.audit import audit, user
        from luthier.store.batches import cancel_batch
        from luthier.store.database import open_store

        store = open_store()
        found = cancel_batch(store, batch_id)
        audit(store, user(), "batch.cancel", batch_id, tenant=found.tenant)
        out().print(f"{batch_id} is {found.status}", markup=False)


def _table(found: list[BatchRecord]) -> RenderableType:
    from rich.markup import escape

    from luthier.cli._print import table

    rows = [
        (
            each.id,
            escape(each.tenant),
            each.endpoint.removeprefix("/v1/"),
            f"[{_COLOURS.get(each.status, 'default')}]{each.status}[/]",
            f"{each.completed:,}",
            f"{each.failed:,}",
            f"{each.total:,}",
            each.created_at[:16].replace("T", " "),
        )
        for each in found
    ]
    columns = ("batch", "tenant", "endpoint", "status", "answered", "failed", "lines", "created (UTC)")
    return table(columns, rows, right=("answered", "failed", "lines"))
