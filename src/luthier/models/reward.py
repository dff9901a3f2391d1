"""Reward models: one number for a prompt with its answer, the higher the better.

Ouyang et al. 2022, "Training language models to follow instructions with human feedback", section 3.5: the head that predicts words gives way to
a linear layer of one output, read where the answer ends. A decoder is read at the answer's last token (its end of turn), an encoder,
which reads prompt and answer as a pair of texts, at its pooled vector. Objective ``reward`` trains one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import Conversation
from luthier.data.batch import order_by_length
from luthier.data.render_source import SourceRenderer
from luthier.models.heads import answers_of
from luthier.models.load import LoadedModel
from luthier.models.rerank import PairIds, pair_features, pair_ids
from luthier.models.score import Row, packed_ends


def is_reward_model(model: LoadedModel) -> bool:
    """Whether ``model`` has a head of one output that stands for no label."""
    return not model.labels and model.head is not None and model.head.out_features == 1 and not answers_of(model.head)


def require_reward_model(model: LoadedModel) -> None:
    """Raise UnsupportedError for another model."""
    if not is_reward_model(model):
        raise UnsupportedError(
            f"{model.record.name} is no reward model: it has no head that scores an answer",
            hint="tune one on preferences: objective: reward",
        )


def rewards_of_rows(model: LoadedModel, rows: Sequence[Row]) -> Tensor:
    """A decoder's reward of every answer (to its end of turn) of every row in turn: fp32, differentiable. A prompt is computed once."""
    ends = packed_ends(model.module, rows, model.device)
    scores: Tensor = model.head(ends.float())
    return scores.squeeze(-1)


def rewards_of_pairs(model: LoadedModel, pairs: Sequence[PairIds], max_batch_tokens: int) -> Tensor:
    """An encoder's reward of every (prompt, answer) pair: fp32, differentiable."""
    scores: Tensor = model.module.classify(pair_features(model, pairs, max_batch_tokens))
    return scores.squeeze(-1)


def rewards(
    model: LoadedModel, conversations: Sequence[Conversation], *, max_batch_tokens: int = 2048, cut: bool = False
) -> list[float]:
    """The reward of the last turn, an assistant's, of each conversation.

    ``cut`` reads of an answer that is too long for the model's context only what fits (and its end of turn), where it would be refused.
    Raises UnsupportedError for a model without such a head, InputError for a conversation without a prompt and an answer at its end, or one
    that is longer than the model's context.
    """
    require_reward_model(model)
    for number, turns in enumerate(conversations, 1):
        if len(turns) < 2 or turns[-1].role != "assistant":
            raise InputError(f"conversation {number} must be a prompt and an assistant turn at its end")
    most = model.context_length if cut else None
    parts = _pairs(model, conversations, most) if model.architecture == "encoder" else _rows(model, conversations, most)
    lengths = [len(p.ids) if isinstance(p, PairIds) else len(p.prompt) + len(p.continuations[0]) for p in parts]
    for number, length in enumerate(lengths, 1):
        if length > model.context_length:
            raise InputError(
                f"conversation {number} has {length} tokens; {model.record.name} reads at most {model.context_length}"
            )
    out = [0.0] * len(parts)
    with torch.inference_mode():
        for batch in order_by_length(lengths, max_batch_tokens):
            chosen = [parts[i] for i in batch]
            rows = [part for part in chosen if isinstance(part, Row)]
            pairs = [part for part in chosen if isinstance(part, PairIds)]
            found = rewards_of_rows(model, rows) if rows else rewards_of_pairs(model, pairs, max_batch_tokens)
            for i, value in zip(batch, found.tolist(), strict=True):
                out[i] = value
    return out


def _pairs(model: LoadedModel, conversations: Sequence[Conversation], most: int | None) -> list[PairIds | Row]:
    return [*pair_ids(model, [(prompt_text(turns[:-1]), turns[-1].content) for turns in conversations], most)]


def _rows(model: LoadedModel, conversations: Sequence[Conversation], most: int | None) -> list[PairIds | Row]:
    renderer = model.renderer
    assert renderer is not None and not isinstance(renderer, SourceRenderer)  # no other architecture has such a head
    out: list[PairIds | Row] = []
    for rendered in renderer.training_ids_batch(conversations):
        end = len(rendered.mask) - rendered.mask[::-1].index(True)
        start = end
        while start and rendered.mask[start - 1]:
            start -= 1
        answer = rendered.ids[start:end]
        if most is not None and start < most < end:
            answer = [*answer[: most - start - 1], answer[-1]]
        out.append(Row(rendered.ids[:start], [answer]))
    return out


def prompt_lengths(model: LoadedModel, prompts: Sequence[Conversation]) -> list[int]:
    """Tokens that ``model`` reads of each prompt before an answer, special tokens included."""
    if model.architecture == "encoder":
        return [len(pair.ids) for pair in pair_ids(model, [(prompt_text(turns), "") for turns in prompts])]
    assert model.renderer is not None
    return [len(ids) for ids in model.renderer.prompt_ids_batch(prompts)]


def prompt_text(turns: Conversation) -> str:
    """What an encoder reads as the prompt: the contents of the turns, oldest first, a blank line between two."""
    return "\n\n".join(turn.content for turn in turns)
