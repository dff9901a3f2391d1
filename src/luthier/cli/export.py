"""``luthier export MODEL [--type F16] [--merge]``: a stored decoder as a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.core.model import ModelRecord
    from luthier.tournament.certificate import Certificate


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def export(
        model: Annotated[str, typer.Argument(metavar="MODEL", help="A base model or an adapter; see luthier models.")],
        type_: Annotated[
            str, typer.Option("--type", metavar="TYPE", help="F32, F16, BF16, Q8_0, Q4_0 or Q4_1.")
        ] = "F16",
        merge: Annotated[
            bool | None,
            typer.Option(
                "--merge/--swap",
                help="Fold an adapter into the weights, or insist on a small LoRA file that is put on the base's GGUF.",
                show_default="a LoRA file where one is possible",
            ),
        ] = None,
        name: Annotated[str | None, typer.Option(metavar="NAME", help="What to call the export.")] = None,
        out: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Also write a copy to this file or folder.")
        ] = None,
        certify: Annotated[
            str | None,
            typer.Option(
                "--certify",
                metavar="TASK.yaml",
                help="Test on your own evaluation that the export is not worse than the model.",
            ),
        ] = None,
        margin: Annotated[
            float, typer.Option(metavar="SCORE", help="With --certify: how much worse may still count as equal.")
        ] = 0.02,
        as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    ) -> None:
        """Write a model as GGUF, for llama.cpp and what is built on it.

        With --certify the exit code is 1 unless the certificate says PASS.
        """
        from luthier.cli import _print
        from luthier.models.export import export as write
        from luthier.models.export import gguf_file
        from luthier.store.database import open_store

        store = open_store()
        with _print.progress() as progress:
            made = write(model, type=type_.upper(), merge=merge, as_name=name, out=out, store=store, progress=progress)
        found = _certificate(made.name, certify, margin)
        if as_json:
            _show_json(made, gguf_file(store, made), found)
        else:
            _show(made, gguf_file(store, made), out, found)
        if found is not None and found.verdict != "PASS":
            raise typer.Exit(1)


def _show_json(made: ModelRecord, path: Path, found: Certificate | None) -> None:
    from luthier.cli import _print

    _print.show_json(
        {
            "name": made.name,
            "target": made.meta["target"],
            "holds": made.meta["holds"],
            "type": made.meta["quantization"],
            "file": str(path),
            "bytes": made.size_bytes,
            "digest": made.digest,
            **({"certificate": found.as_dict()} if found is not None else {}),
        }
    )


def _show(made: ModelRecord, path: Path, out: Path | None, found: Certificate | None) -> None:
    from luthier.cli import _print

    what = "LoRA file for the GGUF of " + str(made.base) if made.meta["holds"] == "lora" else "whole model"
    rows = {
        "export": made.name,
        "holds": f"{what}, {made.meta['quantization']}, {_print.size(made.size_bytes)}",
        "file": str(path),
        **({"copy": str(out)} if out is not None else {}),
    }
    console = _print.out()
    for key, value in rows.items():
        console.print(f"{key:8} {value}", markup=False)
    if found is not None:
        colour = {"PASS": "bold green", "FAIL": "bold red"}.get(found.verdict, "bold yellow")
        console.print("certify ", found.verdict, style=colour)
        console.print(f"         {found.sentence}", markup=False)
    if found is None or found.verdict == "PASS":
        console.print(f"\nnext: luthier chat {made.name}  or  luthier serve {made.name}", markup=False)


def _certificate(name: str, task: str | None, margin: float) -> Certificate | None:
    from luthier.cli import _print
    from luthier.tournament.certificate import certify

    if task is None:
        return None
    with _print.progress() as progress:
        return certify(name, task, margin=margin, progress=progress)
