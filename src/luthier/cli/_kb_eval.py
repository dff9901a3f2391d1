"""``luthier kb eval``: how good a knowledge base's searches, or its answers, are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from luthier.evaluation.compare import RunComparison
    from luthier.evaluation.result import EvalResult
    from luthier.knowledge.measure import Asking


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("eval")
    def evaluate(
        name: Annotated[str, typer.Argument(help="A knowledge base: luthier kb list.")],
        questions: Annotated[
            Path,
            typer.Option(
                "--questions",
                metavar="FILE",
                help="Rows with question, and answers and/or context_id, document, source, chunk (JSONL, CSV, Parquet).",
            ),
        ],
        *,
        k: Annotated[str, typer.Option("-k", "--k", metavar="1,5,10", help="Of how many passages.")] = "1,5,10",
        retrieval: Annotated[
            str | None,
            typer.Option(
                metavar="STEPS", help="Instead of the base's own: dense, or mmr,hybrid, or a YAML list or file."
            ),
        ] = None,
        reranker: Annotated[str, typer.Option(metavar="MODEL", help="For the step rerank.")] = "",
        writer: Annotated[str, typer.Option(metavar="MODEL", help="For steps that write.")] = "",
        match: Annotated[
            Literal["answer", "document"],
            typer.Option(help="A chunk of the right document must hold an answer, or any chunk of it will do."),
        ] = "answer",
        answers: Annotated[
            bool, typer.Option("--answers", help="Answer the questions, and score the answers.")
        ] = False,
        model: Annotated[str, typer.Option(metavar="MODEL", help="The model that answers.")] = "",
        mode: Annotated[str, typer.Option(help="How it answers: stuff, refine, ...")] = "stuff",
        passages: Annotated[int, typer.Option(min=1, help="How many passages it is shown.")] = 5,
        judge: Annotated[
            str, typer.Option(metavar="MODEL", help="Says whether answers are faithful and to the point.")
        ] = "",
        limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions.")] = None,
        against: Annotated[
            str, typer.Option(metavar="RUN", help="Compare with an earlier run of the same questions.")
        ] = "",
        fresh: Annotated[bool, typer.Option("--fresh", help="Ask again, also what was asked before.")] = False,
        html: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Write a page with the figures as a picture.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Measure searches (recall, nDCG, ...) or answers (F1, faithfulness, citations) on questions whose answers are known."""
        from luthier.cli import _print, _results
        from luthier.cli._options import numbers
        from luthier.knowledge.measure import measure

        with _print.progress() as progress:
            result = measure(
                name,
                questions,
                k=numbers(k, int, "k must be whole numbers, 1,5,10"),
                retrieval=steps_of(retrieval),
                match=match,
                asking=_asking(answers, model, mode, passages, judge),
                writer=writer,
                reranker=reranker,
                limit=limit,
                progress=progress,
                fresh=fresh,
            )
        compared = _compared(result, against)
        if html is not None:
            from luthier.evaluation.picture import write_page

            write_page(result, html)
        if as_json:
            _print.show_json(result.as_dict() | ({"against": compared.as_dict()} if compared else {}))
            return
        _results.show_result(result)
        if compared is not None:
            _print.show(_said(compared))
        else:
            _print.say(f"[dim]is another search better?[/] --against {result.run.id}")
        if html is not None:
            _print.say(f"[dim]picture:[/] {html}")


def steps_of(text: str | None) -> list[dict[str, Any]] | None:
    """Steps of a search from ``mmr,hybrid``, a YAML list, or a file of either that may hold them under ``retrieval``."""
    from luthier.core.config import from_mapping, read_yaml
    from luthier.core.errors import InputError
    from luthier.knowledge.settings import steps_of as read_steps

    if text is None:
        return None
    if text.endswith((".yaml", ".yml")):
        value: Any = read_yaml(text).values.get("retrieval")
        if value is None:
            raise InputError(f"{text} has no key retrieval")
    else:
        listed = text if text.lstrip().startswith(("[", "{")) else f"[{text}]"
        value = from_mapping({}, [f"retrieval={listed}"]).values["retrieval"]
    return read_steps(value)


def _asking(answers: bool, model: str, mode: str, passages: int, judge: str) -> Asking | None:
    from luthier.core.errors import InputError
    from luthier.knowledge.measure import Asking

    if not answers:
        for option, given in (("--model", model), ("--judge", judge)):
            if given:
                raise InputError(f"{option} is for answers, and searches are measured", hint="add --answers")
        return None
    if not model:
        raise InputError("--answers needs the model that writes them", hint="--answers --model smollm2-135m")
    return Asking(model, mode=mode, passages=passages, judge=judge)


def _compared(result: EvalResult, against: str) -> RunComparison | None:
    if not against:
        return None
    from luthier.evaluation.compare import compare

    return compare(result.run.id, against, scorer=result.primary)


def _said(found: RunComparison) -> str:
    """The paired difference in one sentence."""
    from luthier.tournament import figures
    from luthier.tournament.verdict import LEVEL

    real = "a real difference" if found.bootstrap_p < LEVEL else "no difference that this many questions can show"
    return (
        f"against {found.second}: {figures.metric(found.scorer)} {found.values[0]:.3f} and {found.values[1]:.3f}, difference "
        rf"{figures.signed(found.difference)} \[{found.low:+.3f}, {found.high:+.3f}], "
        f"{figures.probability(found.bootstrap_p)}: {real} (paired bootstrap over {found.examples:,} questions)"
    )
