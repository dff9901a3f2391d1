"""``luthier kb search``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli._knowledge import Meta, Name, pairs

if TYPE_CHECKING:
    from luthier.core.document import Hit
    from luthier.knowledge.base import KnowledgeBase


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("search")
    def search(
        name: Name,
        question: Annotated[str, typer.Argument(help="What to look for, in words.")],
        *,
        k: Annotated[int, typer.Option("-k", min=1, help="How many passages.")] = 5,
        label: Annotated[
            list[str] | None,
            typer.Option("--label", metavar="LABEL", help="See only what somebody with these access labels sees."),
        ] = None,
        source: Annotated[
            list[str] | None, typer.Option("--source", metavar="PATTERN", help="Only sources like this: '*.pdf'.")
        ] = None,
        meta: Meta = None,
        after: Annotated[str, typer.Option(metavar="DATE", help="Only documents of this day or later.")] = "",
        before: Annotated[str, typer.Option(metavar="DATE", help="Only documents of this day or earlier.")] = "",
        retrieval: Annotated[
            str | None, typer.Option(metavar="STEPS", help="Instead of the base's own: mmr,hybrid or a YAML list.")
        ] = None,
        reranker: Annotated[str | None, typer.Option(metavar="MODEL", help="For the step rerank.")] = None,
        writer: Annotated[str | None, typer.Option(metavar="MODEL", help="For steps that write.")] = None,
        full: Annotated[bool, typer.Option("--full", help="Whole passages.")] = False,
        explain: Annotated[
            bool, typer.Option("--explain", help="Also the steps, their scores, ids and times.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Find the passages that answer a question best."""
        import time

        from rich.markup import escape

        from luthier.cli._print import duration, say, show_json, warn
        from luthier.knowledge.base import open_base
        from luthier.knowledge.filters import read_filter
        from luthier.strategies._load import load

        where = read_filter(labels=label, sources=source or (), meta=pairs(meta), after=after, before=before)
        with open_base(name) as base:
            base.ask = load(writer) if writer else None
            model = load(reranker) if reranker else None
            began = time.perf_counter()
            notes: list[dict[str, Any]] = []
            hits = base.search(question, k, where, retrieval=_steps(retrieval), reranker=model, notes=notes)
            seconds = time.perf_counter() - began
            for note in notes:
                if "failed" in note:
                    warn(f"step {note['step']} was left out, its model failed: {note['failed']}")
            if as_json:
                show_json([_plain(hit) for hit in hits])
                return
            if explain:
                steps = _steps(retrieval) or base.record.retrieval
                names = " <- ".join(str(each["name"]) for each in steps) or "hybrid"
                say(f"[dim]{names} over {base.index.count():,} chunks in {duration(seconds)}[/]")
                for note in notes:
                    what = ", ".join(f"{key} {value!r}" for key, value in note.items() if key != "step")
                    say(f"[dim]{escape(note['step'])}: {escape(what)}[/]")
        if not hits:
            say("Nothing was found." if base_has_documents(base) else f"{name} is empty; luthier kb add {name} PATH...")
            return
        for rank, hit in enumerate(hits, 1):
            _show(rank, hit, question, full=full, explain=explain)


def base_has_documents(base: KnowledgeBase) -> bool:
    """Whether there is anything to find."""
    return any(each.status == "ready" for each in base.documents())


def _steps(text: str | None) -> Sequence[dict[str, Any]] | None:
    """Steps from ``mmr,hybrid`` or YAML."""
    from luthier.core.config import from_mapping
    from luthier.knowledge.settings import steps_of

    if text is None:
        return None
    listed = text if text.lstrip().startswith(("[", "{")) else f"[{text}]"
    return steps_of(from_mapping({}, [f"retrieval={listed}"]).values["retrieval"])


def _show(rank: int, hit: Hit, question: str, *, full: bool, explain: bool) -> None:
    from rich.text import Text

    from luthier.cli._passages import passage, place
    from luthier.cli._print import out

    console = out()
    head = Text(f"{rank:>2}  ", style="bold")
    head.append(place(hit), style="cyan")
    head.append(f"   {hit.score:.4g}", style="bold green")
    parts = ", ".join(f"{name} {value:.4g}" for name, value in hit.scores.items() if value != hit.score)
    if parts:
        head.append(f" ({parts})", style="dim")
    console.print(head, soft_wrap=True)
    width = min(console.width, 120) - 4
    shown = Text(hit.chunk.text) if full else passage(hit.chunk.text, question, width)
    lines = list(shown.wrap(console, width))
    if explain:
        said = f"{hit.document}, chunk {hit.chunk.number}, {hit.chunk.tokens} tokens, {hit.source}"
        lines.append(Text(said, style="dim"))
    for line in lines:
        console.print(Text("    ").append_text(line), soft_wrap=True)
    console.print("")


def _plain(hit: Hit) -> dict[str, Any]:
    from dataclasses import asdict

    from luthier.cli._passages import place

    return {"place": place(hit), **asdict(hit)}
