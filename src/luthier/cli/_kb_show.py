"""``luthier kb show``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli._knowledge import Name

if TYPE_CHECKING:
    from luthier.store.knowledge import DocumentRecord, KnowledgeRecord


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("show")
    def show_one(
        name: Name,
        *,
        most: Annotated[int, typer.Option("--most", min=0, help="Documents to list; 0 is all of them.")] = 50,
        failed: Annotated[bool, typer.Option("--failed", help="Only documents that could not be read.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Show how a base is made and what is in it."""
        from luthier.cli._print import out, show_json, size
        from luthier.knowledge.base import describe_base

        found = describe_base(name)
        if as_json:
            show_json(found.as_dict())
            return
        show_settings(found.record)
        ready = [each for each in found.documents if each.status == "ready"]
        counts = f"{len(ready):,} documents, {sum(each.chunks for each in ready):,} chunks"
        bad = len(found.documents) - len(ready)
        _line("holds", counts + (f"; {bad:,} could not be read" if bad else ""))
        _line("index", f"{size(found.size_bytes)} in {found.folder}")
        listed = [each for each in found.documents if each.status == "failed" or not failed]
        if listed:
            _documents(listed[: most or None])
            if most and len(listed) > most:
                out().print(f"… and {len(listed) - most:,} more: --most 0", markup=False)


def show_settings(record: KnowledgeRecord) -> None:
    """How a base is made, searched and asked."""
    from luthier.cli._print import out

    out().print(record.name, style="bold", markup=False)
    _line("about", record.description)
    _line("embedder", f"{record.embedder} ({record.width} dimensions, {record.embedder_digest[:12]})")
    _line("chunker", _entry(record.chunker))
    _line("index", _entry(record.index))
    _line("retrieval", " <- ".join(map(_entry, record.retrieval)) or "hybrid (the default)")
    _line("answer", ", ".join(f"{key}={value}" for key, value in record.answer.items()))
    _line("made", record.created_at[:19].replace("T", " "))


def _line(name: str, value: str) -> None:
    from luthier.cli._print import out

    if value:
        out().print(f"{name:<10} {value}", markup=False)


def _entry(options: Any) -> str:
    said = ", ".join(f"{key}={value}" for key, value in options.items() if key != "name")
    return f"{options['name']} ({said})" if said else str(options["name"])


def _documents(found: list[DocumentRecord]) -> None:
    import os
    from pathlib import Path

    from rich.markup import escape

    from luthier.cli._print import out, show, table

    files = [each.source for each in found if not each.source.startswith(("http://", "https://"))]
    top = os.path.commonpath([Path(each).parent for each in files]) if files else ""
    if len(top) > 1:
        _line("below", top)
    rows = []
    for each in found:
        name = each.source.removeprefix(f"{top}/") if len(top) > 1 else each.source
        state = "[green]ready[/]" if each.status == "ready" and not each.error else f"[red]{each.status}[/]"
        pages = str(each.pages or "")
        said = "; ".join(filter(None, (each.error, *each.warnings)))
        rows.append(
            (escape(name), state, pages, f"{each.chunks:,}", escape(", ".join(each.labels)), each.language, escape(said))
        )  # fmt: skip
    columns = ("document", "status", "pages", "chunks", "labels", "language", "remarks")
    out().print("")
    show(table(columns, rows, right=("pages", "chunks")))
