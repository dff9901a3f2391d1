"""``luthier serve``: models over the OpenAI wire format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.gateway.serve import Address


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="Models, adapters or endpoints (luthier models), or 'tickets-*'."),
    ] = None,
    *,
    adapters_of: Annotated[
        list[str] | None, typer.Option(metavar="BASE", help="A base and every adapter that was tuned on it.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; a public one needs --keys or --api-key-env.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    engine: Annotated[str, typer.Option(help="auto, torch, llamacpp, openai or fake.")] = "auto",
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="VAR", help="Environment variable with the keys that clients must send, comma-separated."),
    ] = None,
    keys: Annotated[
        bool,
        typer.Option("--keys", help="Ask for the keys of the store (luthier keys), with their limits and budgets."),
    ] = False,
    max_concurrent: Annotated[int, typer.Option(help="Requests computed at once.")] = 8,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; more are told to come back (429).")] = 128,
    price: Annotated[
        list[str] | None,
        typer.Option(metavar="[MODEL=]IN,OUT", help="Price per million prompt and answer tokens, for traces."),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", "-c", metavar="FILE", help="YAML with routes, limits, caches, guardrails.")
    ] = None,
    grace_s: Annotated[float, typer.Option(help="Seconds that running requests get at the end.")] = 20.0,
) -> None:
    """Serve models to any OpenAI client, and keep a trace of every answer.

    Adapters of one base share its memory; requests choose by the name in `model`. Ctrl-C or SIGTERM ends it in order.
    """
    from rich.markup import escape

    from luthier.cli._print import say
    from luthier.gateway.serve import serve as serve_models

    _log()
    asked = [*(models or ()), *(f"the adapters of {base}" for base in adapters_of or ())] or [f"the models of {config}"]
    say(f"[dim]loading {escape(', '.join(asked))} …[/]")
    serve_models(
        models or (),
        adapters_of=adapters_of or (),
        announce=_announce,
        host=host,
        port=port,
        engine=engine,
        api_key_env=api_key_env,
        keys=keys,
        max_concurrent=max_concurrent,
        max_queue=max_queue,
        price=price or (),
        config=config,
        grace_s=grace_s,
    )


def _announce(address: Address) -> None:
    """The address and the models in a box (plain lines without a terminal), and examples to copy below it."""
    from rich.panel import Panel
    from rich.text import Text

    from luthier.cli._print import out, say

    if out().is_terminal:
        out().print(Panel(Text(address.heading()), expand=False, border_style="green"))
    else:
        out().print(address.heading(), markup=False)
    out().print("\n" + address.examples(), markup=False, soft_wrap=True)
    out().file.flush()
    say("One line a request follows. Ctrl-C ends the server.")


def _log() -> None:
    """One line a request, and what goes wrong, on stderr."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    for name in ("luthier.gateway", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
    logging.getLogger("luthier.gateway").setLevel(logging.INFO)
