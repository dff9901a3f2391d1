"""``luthier promote [RUN]``: make a tournament's winner an endpoint."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def promote(
        run: Annotated[
            str, typer.Argument(metavar="[RUN]", help="A tournament or eval run: id, name, or latest.")
        ] = "latest",
        entrant: Annotated[
            str | None, typer.Option(metavar="NAME", help="Another entrant than the one that the verdict keeps.")
        ] = None,
        name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Name of the endpoint.")] = None,
        replace: Annotated[
            bool, typer.Option("--replace", help="Take the name from the endpoint that has it.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    ) -> None:
        """Register the winner as an endpoint: a name that answers exactly as it was evaluated."""
        from dataclasses import asdict

        from rich.markup import escape

        from luthier.cli import _print
        from luthier.tournament.promote import promote as make

        record = make(run, entrant=entrant, name=name, replace=replace)
        if as_json:
            _print.show_json(asdict(record))
            return
        strategy = record.meta.get("strategy")
        asked = f", asked {strategy['name']}" if strategy else ""
        proof = record.meta["evaluated"]
        _print.show(
            f"[bold green]{escape(record.name)}[/] is {escape(str(record.meta['target']))}{escape(asked)}: "
            f"{proof['scorer']} {proof['value']:.2f} on {proof['examples']:,} held-out examples of {escape(proof['task'])}"
        )
        _print.say(f"[dim]next:[/] luthier serve {record.name}   or   luthier lineage {record.name}")
