"""``luthier kb chunks``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli._knowledge import Setting

if TYPE_CHECKING:
    from luthier.knowledge.cuts import Cuts, ShownChunk, Sizes

_BAR = 40


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("chunks")
    def chunks(
        name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A knowledge base.")] = None,
        document: Annotated[
            str | None, typer.Argument(metavar="[DOCUMENT]", help="Its id, its path, or the path's end; else all.")
        ] = None,
        *,
        file: Annotated[
            str | None, typer.Option(metavar="PATH|URL", help="Cut this file instead; nothing is kept.")
        ] = None,
        chunker: Annotated[str | None, typer.Option(metavar="NAME", help="With --file: how to cut it.")] = None,
        embedder: Annotated[
            str | None, typer.Option(metavar="MODEL", help="With --file: whose tokens are counted.")
        ] = None,
        model: Annotated[
            str | None,
            typer.Option(metavar="MODEL", help="With --file: a model that writes, for chunkers that need it."),
        ] = None,
        option: Setting = None,
        most: Annotated[int, typer.Option("--most", min=0, help="Chunks to show; 0 is all of them.")] = 20,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Show how documents are cut: tokens, pages, headings, what is repeated, and how large the chunks are."""
        from luthier.cli._print import show_json

        found = _found(name, document, file, chunker, embedder, model, option)
        if as_json:
            show_json(found.as_dict())
            return
        shown = found.chunks[: most or None]
        for place, each in enumerate(shown):
            _chunk(each, first=place == 0 or shown[place - 1].source != each.source)
        _sizes(found.sizes)
        if len(shown) < len(found.chunks):
            from luthier.cli._print import say

            say(f"shown are {len(shown)} of {len(found.chunks):,} chunks: --most 0")


def _found(
    name: str | None,
    document: str | None,
    file: str | None,
    chunker: str | None,
    embedder: str | None,
    model: str | None,
    option: list[str] | None,
) -> Cuts:
    from luthier.cli._print import progress
    from luthier.core.errors import InputError
    from luthier.knowledge.cuts import cut_base, cut_file
    from luthier.knowledge.settings import DEFAULTS, read_settings

    if (name is None) == (file is None):
        raise InputError("name a knowledge base or a --file", hint="luthier kb list")
    if name is not None:
        given = {"--chunker": chunker, "--embedder": embedder, "--model": model, "--option": option}
        strange = [key for key, value in given.items() if value]
        if strange:
            raise InputError(f"{', '.join(strange)}: these say how a --file is cut; {name} is cut as it was made")
        return cut_base(name, document)
    settings = read_settings({"chunker": chunker} if chunker else {}, option or (), allowed=("chunker",))
    cut_by = settings.get("chunker", DEFAULTS["chunker"])
    with progress() as drawn:
        return cut_file(str(file), cut_by, embedder=embedder or DEFAULTS["embedder"], model=model or "", progress=drawn)


def _chunk(each: ShownChunk, *, first: bool) -> None:
    from rich.text import Text

    from luthier.cli._print import out

    chunk = each.chunk
    if first:
        out().print(Text(each.source, style="bold"))
    pages = chunk.pages or (0, 0)
    said = [
        f"{chunk.tokens} tokens",
        f"pages {pages[0]}-{pages[1]}" if pages[0] != pages[1] else f"page {pages[0]}" if pages[0] else "",
        " > ".join(chunk.headings),
        chunk.place,
        "" if chunk.searched else "not searched",
        f"overlap {each.overlap} characters" if each.overlap else "",
    ]
    out().print(Text(f"\n#{chunk.number}  {'  '.join(filter(None, said))}", style="cyan"))
    for label, text in (("context", chunk.context), ("question", chunk.question)):
        if text:
            out().print(Text(f"[{label}] {text}", style="magenta"))
    if not chunk.question:
        marked = out().is_terminal
        repeated, rest = chunk.text[: each.overlap], chunk.text[each.overlap :]
        before = Text(repeated, style="dim") if marked else Text(f"«{repeated}»" if repeated else "")
        out().print(before + Text(rest))


def _sizes(sizes: Sizes) -> None:
    from luthier.cli._print import out, show, table

    if not sizes.chunks:
        out().print("no chunks")
        return
    out().print(
        f"\n{sizes.chunks:,} chunks, {sizes.searched:,} of them searched; {sizes.tokens:,} tokens: least {sizes.least}, median "
        f"{sizes.median:g}, mean {sizes.mean:.1f}, most {sizes.most}; {sizes.repeated:.1%} of the text is repeated"
    )
    highest = max(count for _, _, count in sizes.bins)
    rows = [
        (f"{low}-{high - 1}" if high - low > 1 else f"{low}", f"{count:,}", "█" * round(_BAR * count / highest))
        for low, high, count in sizes.bins
    ]
    show(table(("tokens", "chunks", ""), rows, right=("tokens", "chunks")))
