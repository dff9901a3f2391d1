"""``luthier kb sweep``: which chunker, embedder and search suit some documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("sweep")
    def sweep(
        file: Annotated[
            Path | None,
            typer.Argument(metavar="[FILE.yaml]", help="documents, questions, chunkers, embedders, retrievers, ..."),
        ] = None,
        *,
        documents: Annotated[
            list[str] | None, typer.Option("--documents", metavar="PATH", help="A file or folder; repeatable.")
        ] = None,
        questions: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Rows with question and where its answer is (as kb eval).")
        ] = None,
        chunker: Annotated[str | None, typer.Option(metavar="A,B", help="Chunkers.")] = None,
        embedder: Annotated[str | None, typer.Option(metavar="A,B", help="Models that embed.")] = None,
        retrieval: Annotated[
            str | None,
            typer.Option(metavar="A,B", help="Searches: a step, steps joined by + (mmr+hybrid), or a YAML file."),
        ] = None,
        k: Annotated[str | None, typer.Option("-k", "--k", metavar="1,5,10", help="Of how many passages.")] = None,
        reranker: Annotated[str | None, typer.Option(metavar="MODEL", help="For the step rerank.")] = None,
        writer: Annotated[str | None, typer.Option(metavar="MODEL", help="For steps that write.")] = None,
        limit: Annotated[int | None, typer.Option(min=2, help="Only the first questions.")] = None,
        create: Annotated[str, typer.Option(metavar="NAME", help="Make a base of the one that was chosen.")] = "",
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Measure chunkers x embedders x searches: half of the questions chooses, the other half proves. Interrupted, it goes on."""
        from luthier.cli import _print, _results
        from luthier.cli._options import numbers
        from luthier.tournament.sweep import sweep as run

        given: dict[str, Any] = {
            "documents": documents,
            "questions": str(questions) if questions is not None else None,
            "chunkers": _listed(chunker),
            "embedders": _listed(embedder),
            "retrievers": [each.split("+") if "+" in each else each for each in _listed(retrieval) or ()] or None,
            "k": None if k is None else numbers(k, int, "k must be whole numbers, 1,5,10"),
            "reranker": reranker,
            "writer": writer,
            "limit": limit,
        }
        given = {key: value for key, value in given.items() if value is not None}
        with _print.progress() as progress:
            swept = run(_source(file, given), create=create, progress=progress)
        if as_json:
            _print.show_json(swept.as_dict())
            return
        _results.show_board(swept.board)
        if swept.created:
            _print.say(f"knowledge base [bold]{swept.created}[/] is made of {swept.chosen}")


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def _source(file: Path | None, given: dict[str, Any]) -> Any:
    """A file with what was given on the command line in the place of its own, or that alone."""
    from luthier.core.errors import InputError
    from luthier.tournament.sweep import read_sweep

    if file is None:
        for key in ("documents", "questions"):
            if key not in given:
                raise InputError(f"--{key} is missing, or a FILE.yaml that names it")
        return given
    told = read_sweep(file).model_dump(exclude_unset=True)
    return {**told, **given}
