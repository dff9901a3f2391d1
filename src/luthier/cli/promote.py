"""``luthier promote [RUN]``: make a tournament's winner an endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.core.model import ModelRecord


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
        parity_check: Annotated[
            bool,
            typer.Option(
                "--parity-check/--no-parity-check",
                help="Refuse a model whose prompts, stop tokens or loss mask differ between training and serving.",
            ),
        ] = True,
        uncertified: Annotated[
            bool, typer.Option("--uncertified", help="Promote an export although its certificate says FAIL.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    ) -> None:
        """Register the winner as an endpoint: a name that answers exactly as it was evaluated."""
        from dataclasses import asdict

        from rich.markup import escape

        from luthier.cli import _print
        from luthier.tournament.promote import promote as make

        record = make(
            run, entrant=entrant, name=name, replace=replace, parity_check=parity_check, uncertified=uncertified
        )
        if as_json:
            _print.show_json(asdict(record))
            return
        if not parity_check:
            _print.warn(f"whether {record.name} is served as it was trained was not checked (--no-parity-check)")
        _warn_of_certificate(record)
        strategy = record.meta.get("strategy")
        asked = f", asked {strategy['name']}" if strategy else ""
        proof = record.meta["evaluated"]
        _print.show(
            f"[bold green]{escape(record.name)}[/] is {escape(str(record.meta['target']))}{escape(asked)}: "
            f"{proof['scorer']} {proof['value']:.2f} on {proof['examples']:,} held-out examples of {escape(proof['task'])}"
        )
        _print.say(f"[dim]next:[/] luthier serve {record.name}   or   luthier lineage {record.name}")


def _warn_of_certificate(record: ModelRecord) -> None:
    """An export that was not shown to be as good as its model is told, with the command that would show it."""
    from luthier.cli import _print

    certificate = record.meta.get("certificate")
    if certificate is None or certificate["verdict"] == "PASS":
        return
    target = record.meta["target"]
    said = (
        "has no certificate"
        if certificate["verdict"] == "none"
        else f"has a certificate that says {certificate['verdict']}"
    )
    _print.warn(
        f"{target} is an export and {said} on {certificate['task']}: whether it answers as well as its model is not shown. "
        "luthier export MODEL --type TYPE --certify TASK.yaml tests it"
    )
