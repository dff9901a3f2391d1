"""Preference data as token ids: a prompt, and answers of which one is better; what a reference model says about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, UnsupportedError
from luthier.core.message import Conversation
from luthier.core.run import Progress
from luthier.data.batch import order_by_length
from luthier.data.render_source import SourceRenderer
from luthier.models.decode import attends_fully
from luthier.models.load import LoadedModel
from luthier.models.score import Row as ScoredRow
from luthier.models.soft_prompt import is_soft
from luthier.objectives._log_probs import answer_log_probs
from luthier.objectives._rows import Limits, last_run, require_kind
from luthier.objectives._shown import Line, answer_lines

KINDS = ("preference",)
_SHOWN = 10
_REFERENCE_TOKENS = 2048


@dataclass(slots=True)
class PairRow:
    """Token ids of a prompt and of its two answers, each to its end of turn; ``length`` counts what goes through the model.

    ``reference`` are the log-probabilities of chosen and rejected under the model as it was before training, ``margin`` by how much chosen is said to be better.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    source: str
    length: int = 0
    reference: tuple[float, float] | None = None
    margin: float = 0.0

    @property
    def weight(self) -> int:
        """One pair."""
        return 1

    @property
    def scored(self) -> ScoredRow:
        """For one packed forward."""
        return ScoredRow(self.prompt, [self.chosen, self.rejected])


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Rows for one packed forward; tokens of each answer and reference log-probabilities, both (rows, 2), chosen first."""

    rows: list[ScoredRow]
    sizes: Tensor
    reference: Tensor | None

    def lines(self) -> list[Line]:
        """What is read and asked, token by token."""
        return answer_lines(self.rows)


def pairs(
    dataset: Dataset,
    model: LoadedModel,
    limits: Limits,
    objective: str,
    margin: Callable[[Example], float] | None = None,
) -> list[PairRow]:
    """Both answers of every example in tokens, and its ``margin``.

    Raises UnsupportedError for another kind of data or an encoder; DataError, which names the rows, for an example with one side, without
    a prompt or with an empty answer, sides that are the same tokens, and rows over the context.
    """
    require_kind(dataset, KINDS, objective)
    require_both(dataset, objective)
    chosen = tokenised(dataset, [e.chosen for e in dataset.examples], model, objective)
    rejected = tokenised(dataset, [e.rejected for e in dataset.examples], model, objective)
    same = [e for e, good, bad in zip(dataset.examples, chosen, rejected, strict=True) if good[1] == bad[1]]
    refuse(dataset, same, "chosen and rejected are the same tokens", "leave them out: such a pair teaches nothing")
    apart = model.architecture == "encoder-decoder"  # source and target may each be as long as the context
    rows = []
    for example, (prompt, good), (_, bad) in zip(dataset.examples, chosen, rejected, strict=True):
        row = PairRow(prompt, good, bad, example.source or example.id)
        if margin is not None:
            row.margin = margin(example)
        most = max(map(len, (good, bad)))
        if limits.admit(
            example,
            max(len(prompt), most) if apart else len(prompt) + most,
            partial(_shorten, row, limits.context_length, model),
        ):
            row.length = cost(model, row.prompt, [row.chosen, row.rejected])
            rows.append(row)
    limits.check()
    return rows


def require_both(dataset: Dataset, objective: str) -> None:
    """Raise DataError for examples with one side only."""
    alone = [e for e in dataset.examples if not (e.chosen and e.rejected)]
    refuse(dataset, alone, f"objective {objective} compares a chosen with a rejected answer; one is missing", _ONE_SIDE)


_ONE_SIDE = "objective: kto learns from single answers that are marked as good or bad"


def refuse(dataset: Dataset, examples: Sequence[Example], problem: str, hint: str) -> None:
    """Raise DataError that names ``examples``, if there are any."""
    if examples:
        names = ", ".join(e.source or e.id for e in examples[:_SHOWN])
        more = f" and {len(examples) - _SHOWN} more" if len(examples) > _SHOWN else ""
        raise DataError(f"{dataset.name}: {problem} ({names}{more})", hint=hint)


def tokenised(
    dataset: Dataset, sides: Sequence[Conversation], model: LoadedModel, objective: str
) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer of each example in tokens, where ``sides`` are the answers; only what the assistant says is in an answer."""
    renderer = model.renderer
    if renderer is None:
        raise UnsupportedError(
            f"objective {objective} needs a decoder or an encoder-decoder; {model.record.name} is an encoder",
            hint="objective: reward learns from preferences with an encoder",
        )
    require_answers(dataset, sides)
    examples = dataset.examples
    whole = [(*example.messages, *side) for example, side in zip(examples, sides, strict=True)]
    tools = [example.meta.get("tools") for example in examples]
    if isinstance(renderer, SourceRenderer):
        return [(p[-1].source, p[-1].target) for p in renderer.training_pairs_batch(whole, tools)]
    found = []
    for rendered in renderer.training_ids_batch(whole, tools):
        start, end = last_run(rendered.mask)
        found.append((rendered.ids[:start], rendered.ids[start:end]))
    nothing = [e for e, (prompt, answer) in zip(examples, found, strict=True) if not prompt or not answer]
    refuse(dataset, nothing, "no token is left to learn from", "look at it: luthier data render FILE --mask")
    return found


def require_answers(dataset: Dataset, sides: Sequence[Conversation]) -> None:
    """Raise DataError for an example without a prompt, and for an answer that is empty or more than one turn of the assistant."""
    examples = dataset.examples
    refuse(dataset, [e for e in examples if not e.messages], "there is no prompt", "give each row a prompt")
    longer = [e for e, side in zip(examples, sides, strict=True) if [m.role for m in side] != ["assistant"]]
    refuse(
        dataset,
        longer,
        "an answer must be one turn of the assistant",
        "put the turns before the last one into the prompt of both sides",
    )
    empty = [
        e for e, side in zip(examples, sides, strict=True) if not side[0].content.strip() and not side[0].tool_calls
    ]
    refuse(dataset, empty, "an answer is empty", "leave these rows out, or write the answers")


def _shorten(row: PairRow, length: int, model: LoadedModel) -> bool:
    """Cut the ends of the answers. Not worth training: no room after the prompt, or answers that do not differ any more."""
    room = length
    if isinstance(model.renderer, SourceRenderer):
        row.prompt = model.renderer.cut(row.prompt, length)
    else:
        room -= len(row.prompt)
    row.chosen, row.rejected = row.chosen[: max(room, 0)], row.rejected[: max(room, 0)]
    return room > 0 and row.chosen != row.rejected


def cost(model: LoadedModel, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> int:
    """Tokens that go through the model for a prompt with its answers; the last of an answer predicts nothing."""
    tails = sum(len(answer) - 1 for answer in answers)
    if model.architecture == "decoder" and not attends_fully(model.module):
        return len(prompt) * len(answers) + tails  # every answer is a row of its own
    return len(prompt) + tails


def collate(rows: Sequence[PairRow], model: LoadedModel) -> PairBatch:
    """Rows for the packed forward."""
    known = [row.reference for row in rows if row.reference is not None]
    return PairBatch(
        [row.scored for row in rows],
        torch.tensor([[len(row.chosen), len(row.rejected)] for row in rows], device=model.device),
        torch.tensor(known, device=model.device) if len(known) == len(rows) else None,
    )


def reference_log_probs(
    model: LoadedModel, scored: Sequence[ScoredRow], lengths: Sequence[int], progress: Progress
) -> list[list[float]]:
    """log p of every answer of each row under the model as it is, in batches of like lengths; the same for the same rows.

    A method that begins as its base (LoRA and its kin, adapters, the weights themselves) says what the base says. A soft prompt does
    not, and is left out here.
    """
    out: list[list[float]] = [[] for _ in scored]
    batches, done = order_by_length(lengths, _REFERENCE_TOKENS), 0
    progress("reference", 0, len(scored))
    with torch.no_grad(), model.module.disable_adapter() if is_soft(model.module) else nullcontext():
        for batch in batches:
            rows = [scored[i] for i in batch]
            values = iter(answer_log_probs(model, rows).tolist())
            for i, row in zip(batch, rows, strict=True):
                out[i] = [next(values) for _ in row.continuations]
            done += len(batch)
            progress("reference", done, len(scored))
    return out


def share_right(margins: Tensor) -> float:
    """The part of ``margins`` that is positive; a tie counts half."""
    return float(((margins.detach().sign() + 1) / 2).mean())
