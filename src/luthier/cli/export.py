"""``luthier export MODEL [--type F16] [--merge]``: a stored decoder as a GGUF file; an adapter also in PEFT's or AdapterHub's layout."""

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
        format_: Annotated[
            str,
            typer.Option(
                "--format", metavar="FORMAT", help="gguf; of an adapter also peft or adapterhub, into the folder --out."
            ),
        ] = "gguf",
        type_: Annotated[
            str | None,
            typer.Option("--type", metavar="TYPE", help="F32, F16, BF16, Q8_0, Q4_0 or Q4_1.", show_default="F16"),
        ] = None,
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
        """Write a model as GGUF, for llama.cpp and what is built on it, or an adapter in the layout of PEFT or AdapterHub.

        With --certify the exit code is 1 unless the certificate says PASS.
        """
        from luthier.cli import _print
        from luthier.models.export import export as write
        from luthier.models.export import gguf_file
        from luthier.store.database import open_store

        store = open_store()
        if format_ != "gguf":
            given = {"--type": type_, "--merge": merge, "--name": name, "--certify": certify}
            _write_folder(model, format_, out, [key for key, value in given.items() if value is not None], as_json)
            return
        with _print.progress() as progress:
            made = write(
                model, type=(type_ or "F16").upper(), merge=merge, as_name=name, out=out, store=store, progress=progress
            )
        found = _certificate(made.name, certify, margin)
        if as_json:
            _show_json(made, gguf_file(store, made), found)
        else:
            _show(made, gguf_file(store, made), out, found)
        if found is not None and found.verdict != "PASS":
            raise typer.Exit(1)


def _write_folder(model: str, format_: str, out: Path | None, beside: list[str], as_json: bool) -> None:
    from luthier.cli import _print
    from luthier.core.errors import InputError
    from luthier.models.export_adapter import FORMATS, export_adapter
    from luthier.store.database import open_store

    if format_ not in FORMATS:
        raise InputError(f"--format must be gguf, {' or '.join(FORMATS)}; got {format_!r}")
    if beside:
        raise InputError(f"{', '.join(beside)} goes with --format gguf; got --format {format_}")
    if out is None:
        raise InputError(
            f"--format {format_} writes a folder: say which",
            hint=f"luthier export {model} --format {format_} --out FOLDER",
        )
    folder = export_adapter(open_store(), model, format_, out)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    if as_json:
        _print.show_json({"name": model, "format": format_, "folder": str(folder), "files": files})
        return
    _print.out().print(
        f"{model} in the layout of {'PEFT' if format_ == 'peft' else 'AdapterHub'}: {folder}", markup=False
    )
    for name, size in files.items():
        _print.out().print(f"  {name}  {_print.size(size)}", markup=False)


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
