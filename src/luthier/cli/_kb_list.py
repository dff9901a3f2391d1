"""``luthier kb list``."""

from __future__ import annotations

from typing import Annotated

import typer


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("list")
    def list_all(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
        """List knowledge bases."""
        from dataclasses import asdict

        from luthier.cli._print import say, show, show_json, table
        from luthier.store.database import open_store
        from luthier.store.knowledge import list_bases, list_documents

        store = open_store()
        found = list_bases(store)
        if as_json:
            show_json([asdict(each) for each in found])
            return
        if not found:
            say("No knowledge bases yet; `luthier kb create NAME` makes one.")
            return
        rows = []
        for each in found:
            documents = [one for one in list_documents(store, each.name) if one.status == "ready"]
            chunks = sum(one.chunks for one in documents)
            made = (each.chunker["name"], each.index["name"], each.created_at[:10])
            rows.append((each.name, f"{len(documents):,}", f"{chunks:,}", each.embedder, *made))
        columns = ("name", "documents", "chunks", "embedder", "chunker", "index", "created")
        show(table(columns, rows, right=("documents", "chunks")))
