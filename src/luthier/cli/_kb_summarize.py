"""``luthier kb summarize``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.knowledge.summarize import Part, Summary


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("summarize")
    def summarize_document(
        what: Annotated[str, typer.Argument(metavar="FILE|URL|BASE", help="A file, a URL, or a knowledge base.")],
        document: Annotated[
            str | None, typer.Argument(metavar="[DOCUMENT]", help="Of a base: the source or id of a document.")
        ] = None,
        *,
        model: Annotated[str, typer.Option("--model", metavar="NAME", help="What writes (luthier models).")],
        style: Annotated[
            str, typer.Option(help="map_reduce: notes of each piece put together; refine: one piece after the other.")
        ] = "map_reduce",
        tokens: Annotated[int, typer.Option(help="The most tokens of the summary.")] = 400,
        piece_tokens: Annotated[
            int | None, typer.Option(help="The most tokens of a piece; as many as the model reads, when left out.")
        ] = None,
        focus: Annotated[str, typer.Option(metavar="TEXT", help="What the summary is to be about above all.")] = "",
        language: Annotated[
            str | None, typer.Option(metavar="en|zh", help="Of the instructions; that of the document, when left out.")
        ] = None,
        engine: Annotated[str, typer.Option(help="auto, torch, llamacpp, openai or fake.")] = "auto",
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Summarise a long document. Interrupted, the same command goes on where it was.

        Numbers in brackets say what a statement rests on; the list below the summary says where that is.
        """
        from dataclasses import asdict

        from luthier.cli._print import progress, show_json
        from luthier.knowledge.summarize import summarize
        from luthier.store.database import open_store
        from luthier.strategies._load import load

        parts = _parts(what, document)
        store = open_store()
        opened = load(model, engine=engine, store=store)
        try:
            with progress() as shown:
                found = summarize(
                    parts, opened, style=style, tokens=tokens, piece_tokens=piece_tokens, focus=focus, language=language,
                    kept=store.home.root / "knowledge" / "written.db", progress=shown,
                )  # fmt: skip
        finally:
            opened.close()
        if as_json:
            show_json(asdict(found) | {"pieces": [{"cited": piece.cited, **asdict(piece)} for piece in found.pieces]})
        else:
            _show(found)


def _parts(what: str, document: str | None) -> list[Part]:
    from pathlib import Path

    from luthier.cli._print import warn
    from luthier.core.errors import InputError
    from luthier.knowledge.base import open_base
    from luthier.knowledge.fetch import fetch
    from luthier.knowledge.parse import parse_bytes, parse_file
    from luthier.knowledge.summarize import parts_of, parts_of_chunks

    if document is not None:
        with open_base(what) as base:
            return parts_of_chunks(base.chunks(document))
    if what.startswith(("http://", "https://")):
        fetched = fetch(what)
        found = parse_bytes(fetched.data, what, media_type=fetched.media_type)
    elif Path(what).expanduser().exists():
        found = parse_file(Path(what).expanduser())
    else:
        raise InputError(
            f"no such file: {what}", hint="of a knowledge base: luthier kb summarize BASE DOCUMENT --model NAME"
        )
    for each in found.warnings:
        warn(f"{what}: {each}")
    return parts_of(found)


def _show(found: Summary) -> None:
    from luthier.cli._print import out

    console = out()
    console.print(found.text, markup=False)
    listed = [(number, found.pieces[number - 1].cited) for number in found.cited]
    if len(found.pieces) > 1 and any(place for _, place in listed):
        console.print("")
        for number, place in listed:
            console.print(f"[{number}] {place or f'part {number} of {len(found.pieces)}'}", style="dim", markup=False)
