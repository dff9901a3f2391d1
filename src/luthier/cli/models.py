"""``luthier models``: what the store holds."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def models(
        kind: Annotated[str | None, typer.Option(help="Only base, adapter, export or endpoint.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
        remove: Annotated[
            str | None, typer.Option(metavar="NAME", help="Remove this model and weights that only it uses.")
        ] = None,
    ) -> None:
        """List base models, adapters, exports and endpoints."""
        from dataclasses import asdict

        from luthier.cli import _print
        from luthier.store import models as stored
        from luthier.store.database import open_store

        store = open_store()
        if remove is not None:
            stored.remove(store, remove)
            _print.say(f"removed {remove}")
            return
        records = stored.list_models(store, kind)
        if as_json:
            _print.show_json([asdict(record) for record in records])
            return
        if not records:
            _print.say(f"no {kind or 'model'}{'' if kind else 's'} yet; begin with: luthier pull {stored.PULLABLE[0]}")
            return
        rows = []
        for record in records:
            how = record.meta.get("method") or record.meta.get("quantization") or record.meta.get("dtype") or ""
            of = record.meta.get("target") or record.base or ""
            made = (record.run_id or "") if record.kind != "base" else str(record.meta.get("source", "")).split("#")[0]
            size = _print.size(record.size_bytes) if record.size_bytes else ""
            kind_of = f"{record.kind} {record.architecture}"
            name = f"[bold]{record.name}[/]"
            rows.append((name, kind_of, how, size, record.licence, of, made, record.created_at[:10]))
        columns = ["name", "kind", "how", "size", "licence", "of", "made by", "created"]
        fit = len(columns) if _print.out().width >= 110 else -2  # a narrow terminal shows what a model is, not its past
        _print.show(_print.table(columns[:fit], [row[:fit] for row in rows], right=["size"], cut=["made by"]))
