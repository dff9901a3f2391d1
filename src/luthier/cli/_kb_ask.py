"""``luthier kb ask``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli._knowledge import Meta, Name, pairs

if TYPE_CHECKING:
    from luthier.core.engine import Generation, Sampling
    from luthier.core.message import Conversation
    from luthier.knowledge.rag import RagEngine


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("ask")
    def ask(
        name: Name,
        question: Annotated[str, typer.Argument(help="What to answer from the documents.")],
        *,
        model: Annotated[
            str, typer.Option(metavar="MODEL", help="What writes. Default: the base's own (answer.model).")
        ] = "",
        engine: Annotated[str, typer.Option(help="auto, torch, llamacpp, openai or fake.")] = "auto",
        mode: Annotated[
            str,
            typer.Option(
                metavar="MODE",
                help="stuff, refine, map_reduce, map_rerank or self_rag. Default: the base's own, or stuff.",
            ),
        ] = "",
        option: Annotated[
            list[str] | None,
            typer.Option("--option", metavar="KEY=VALUE", help="Of the mode: order=edges, compress=extractive, ..."),
        ] = None,
        k: Annotated[
            int | None, typer.Option("-k", min=1, help="How many passages. Default: the base's own, or 5.")
        ] = None,
        least: Annotated[
            list[str] | None,
            typer.Option(
                "--least", metavar="SCORE=NUMBER", help="Show only passages that reach this: dense=0.4, rerank=0.2."
            ),
        ] = None,
        label: Annotated[
            list[str] | None,
            typer.Option("--label", metavar="LABEL", help="See only what somebody with these access labels sees."),
        ] = None,
        source: Annotated[
            list[str] | None, typer.Option("--source", metavar="PATTERN", help="Only sources like this: '*.pdf'.")
        ] = None,
        meta: Meta = None,
        reranker: Annotated[str | None, typer.Option(metavar="MODEL", help="For the step rerank.")] = None,
        system: Annotated[str | None, typer.Option(help="A system message before the question.")] = None,
        temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
        max_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of the answer.")] = 512,
        stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print the answer as it is written.")] = True,
        explain: Annotated[
            bool, typer.Option("--explain", help="Also the passages shown, the steps and the calls.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Answer a question from the documents, and say what the answer rests on. A conversation: luthier chat kb:NAME."""
        from luthier.cli._print import show_json
        from luthier.core.config import from_mapping
        from luthier.core.engine import Sampling
        from luthier.core.message import Message, user
        from luthier.knowledge.filters import read_filter
        from luthier.knowledge.rag import open_rag

        made = open_rag(
            name,
            model=model,
            opens_with=engine,
            mode=mode,
            options=from_mapping({}, option or ()).values,
            k=k,
            least=_numbers(least),
            where=read_filter(labels=label, sources=source or (), meta=pairs(meta)),
            reranker=reranker,
        )
        try:
            turns = ((Message("system", system),) if system else ()) + user(question)
            sampling = Sampling(max_new_tokens=max_tokens, temperature=temperature)
            if as_json:
                show_json(plain(made.generate([turns], sampling)[0], made))
                return
            answer = _streamed(made, turns, sampling) if stream else made.generate([turns], sampling)[0]
        finally:
            made.close()
        _show(answer, printed=stream, explain=explain)


def _numbers(texts: list[str] | None) -> dict[str, float] | None:
    """``rerank=0.3`` as a number by its name."""
    from luthier.core.errors import InputError

    out = {}
    for text in texts or ():
        name, _, number = text.partition("=")
        try:
            out[name.strip()] = float(number)
        except ValueError as error:
            raise InputError(f"--least must be SCORE=NUMBER, for example dense=0.4; got {text!r}") from error
    return out or None


def _streamed(made: RagEngine, turns: Conversation, sampling: Sampling) -> Generation:
    """Print the answer as it comes."""
    from luthier.core.errors import EngineError

    for delta in made.stream(turns, sampling):
        sys.stdout.write(delta.text)
        sys.stdout.flush()
        if delta.generation is not None:
            sys.stdout.write("\n")
            return delta.generation
    raise EngineError(f"{made.info.model} ended an answer without saying so")


def _show(answer: Generation, *, printed: bool, explain: bool) -> None:
    """The answer, where it was not printed yet, and what it rests on."""
    from luthier.cli._print import err, say

    if not printed:
        sys.stdout.write(answer.text + "\n")
    show_citations(answer)
    if answer.finish_reason == "length":
        say("[dim]cut at --max-tokens[/]")
    if not explain:
        return
    calls = f"{answer.calls} call{'' if answer.calls == 1 else 's'}"
    say(
        f"[dim]{calls}, {answer.prompt_tokens:,} + {answer.completion_tokens:,} tokens, {answer.latency_s:.2f} s of writing[/]"
    )
    for step in answer.steps:
        told = ", ".join(f"{key} {value}" for key, value in step.items() if key != "step")
        err().print(f"  {step['step']}: {told}", markup=False, highlight=False, style="dim")


def show_citations(answer: Generation) -> None:
    """``[1] handbook.pdf, page 3: quote``, a line each."""
    from rich.text import Text

    from luthier.cli._passages import place
    from luthier.cli._print import out

    if answer.citations:
        out().print("")
    for citation in answer.citations:
        line = Text(f"[{citation.number}] ", style="bold")
        line.append(place(citation.hit), style="cyan")
        if citation.quote:
            line.append(f": {' '.join(citation.quote.split())}")
        out().print(line, soft_wrap=True)


def plain(answer: Generation, made: RagEngine) -> dict[str, Any]:
    """An answer as JSON: its text, what it rests on, what was shown, what it cost."""
    from luthier.knowledge.cite import cited_as_dict
    from luthier.knowledge.prompt import is_not_found

    return {
        "answer": answer.text,
        "answered": not is_not_found(answer.text),
        "citations": [cited_as_dict(each) for each in answer.citations],
        "passages": [
            {
                "number": number,
                "place": hit.cited,
                "chunk": hit.chunk.id,
                "document": hit.document,
                "text": hit.chunk.text,
                "scores": dict(hit.scores),
            }
            for number, hit in enumerate(answer.hits, 1)
        ],
        "steps": [dict(each) for each in answer.steps],
        "model": dict(made.info.meta)["writer"],
        "mode": made.mode,
        "finish_reason": answer.finish_reason,
        "calls": answer.calls,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
    }
