"""``luthier routes``: what the names that clients ask lead to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from luthier.cli._server import LOCAL, KeyVariable, ServerUrl


def register(app: typer.Typer) -> None:
    """Add the commands."""
    routes = typer.Typer(
        help="Routes of the gateway. Without a further word: those of a configuration file (-c), or of a running server.",
        invoke_without_command=True,
    )
    app.add_typer(routes, name="routes")

    @routes.callback()
    def list_all(
        context: typer.Context,
        config: Annotated[
            str | None, typer.Option("--config", "-c", metavar="FILE", help="A configuration file; nothing is loaded.")
        ] = None,
        server: ServerUrl = LOCAL,
        api_key_env: KeyVariable = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Show routes, and check the file that they are in."""
        if context.invoked_subcommand is None:
            _list(_of_file(config) if config else _of_server(server, api_key_env), as_json)

    @routes.command()
    def reset(
        name: Annotated[str, typer.Argument(help="A route.")],
        server: ServerUrl = LOCAL,
        api_key_env: KeyVariable = None,
    ) -> None:
        """Let a route begin anew: a canary that was rolled back is tried again."""
        from luthier.cli import _print
        from luthier.cli._server import ask_server

        ask_server(server, "POST", f"routes/{name}/reset", api_key_env, {})
        _print.say(f"{name} begins anew")


def _of_server(server: str, api_key_env: str | None) -> list[dict[str, Any]]:
    from luthier.cli._server import ask_server

    found: list[dict[str, Any]] = ask_server(server, "GET", "routes", api_key_env)["data"]
    return found


def _of_file(path: str) -> list[dict[str, Any]]:
    """The routes of a file, checked against its own models. Raises InputError for what is wrong with it."""
    from luthier.gateway.config import read_config
    from luthier.gateway.targets.stock import Stock

    config = read_config(path)
    Stock().check(config)
    return [
        {"id": name, "strategy": route.strategy, "targets": list(route.names())}
        for name, route in config.routes.items()
    ]


def _list(found: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    from luthier.cli import _print

    if as_json:
        _print.show_json(list(found))
        return
    if not found:
        _print.say("no routes: every name that clients ask is a model's own")
        return
    rows = [(f"[bold]{each['id']}[/]", each["strategy"], ", ".join(each["targets"]), _state(each)) for each in found]
    _print.show(_print.table(["route", "strategy", "targets", "state"], rows))


def _state(route: Mapping[str, Any]) -> str:
    """What is worth a look: a canary's verdict, and models that cannot be asked."""
    told = [str(route["state"]["status"])] if "status" in route.get("state", {}) else []
    for name, model in route.get("models", {}).items():
        bad = [each["state"] for each in model["replicas"] if each["state"] != "closed"]
        told += [f"{name}: {', '.join(bad)}"] if bad else []
    return "; ".join(told)
