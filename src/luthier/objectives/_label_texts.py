"""Classification by a decoder or an encoder-decoder: the labels' texts are scored as answers, and the scores compete.

For input x and label texts y: s(y) = log p(y + end of turn | prompt of x), all labels in one packed forward. The loss is

    -log softmax(s)[right]  +  generative_weight * -s(right)  +  lm_weight * L1

The first term ranks the closed set (and is what an evaluation by scoring does); the second is plain supervised fine-tuning on the right
answer, which makes free generation say the label and stop. The third is the auxiliary objective of Radford et al. 2018 (GPT-1), eq. 5: L1 is the
language-model loss of the text itself, the mean over its tokens, from the same forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.dataset import Dataset
from luthier.core.errors import DataError
from luthier.core.task import PromptTemplate
from luthier.data.render_source import SourceRenderer
from luthier.models.load import LoadedModel
from luthier.models.score import Row as ScoredRow
from luthier.models.score import packed_log_probs, packed_log_probs_with_texts
from luthier.models.seq2seq import pair_log_probs
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits
from luthier.objectives._shown import Line, answer_lines


@dataclass(slots=True)
class TextRow:
    """Prompt ids, every label's ids (one list that all rows share), and the right label's index. ``first`` to before ``last`` are the tokens
    of the prompt that are the text, where its language-model loss counts."""

    prompt: list[int]
    answers: list[list[int]]
    label: int
    source: str
    first: int = 0
    last: int = 0

    @property
    def length(self) -> int:
        """Tokens that it costs: the prompt, and the answers beside one another."""
        return len(self.prompt) + sum(len(answer) - 1 for answer in self.answers)

    @property
    def weight(self) -> int:
        """One example."""
        return 1


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Rows for one packed forward; labels (rows); which tokens of each prompt are its text."""

    rows: list[ScoredRow]
    labels: Tensor
    spans: tuple[tuple[int, int], ...] = ()

    def lines(self) -> list[Line]:
        """What is read and asked, token by token."""
        return answer_lines(self.rows)


def prepare(
    dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, limits: Limits, *, texts: bool = False
) -> list[TextRow]:
    """Tokenise prompts and labels; with ``texts`` find the text in each prompt. Raises DataError when two labels have the same tokens, or a row is too long."""
    assert model.renderer is not None  # decoders have one
    answers = [model.renderer.continuation_ids(label, ends_turn=True) for label in model.labels]
    for first, one in enumerate(answers):
        for second in range(first):
            if one == answers[second]:
                raise DataError(
                    f"labels {model.labels[second]!r} and {model.labels[first]!r} are the same to the model: both are tokens {one}"
                )
    place = {label: index for index, label in enumerate(model.labels)}
    prompts = model.renderer.prompt_ids_batch([prompt.messages(e.text) for e in dataset.examples])
    longest = max(map(len, answers)) if model.architecture == "decoder" else 0  # another stack reads the answers
    keep = limits.context_length - longest
    frames = _frames(model, prompt) if texts else None
    rows = []
    for example, ids in zip(dataset.examples, prompts, strict=True):
        row = TextRow(ids, answers, place[str(example.target)], example.source or example.id)
        shorten = partial(shorten_prompt, row, example.text, keep, model, prompt)
        if limits.admit(example, len(ids) + longest, shorten):
            if frames is not None:
                row.first, row.last = _text_span(row.prompt, frames)
            rows.append(row)
    limits.check()
    return rows


def _frames(model: LoadedModel, prompt: PromptTemplate) -> list[list[int]]:
    """The prompts of two texts that have nothing in common."""
    assert model.renderer is not None
    return [model.renderer.prompt_ids(prompt.messages(text)) for text in ("x", "Q")]


def _text_span(ids: list[int], frames: Sequence[list[int]]) -> tuple[int, int]:
    """Which tokens of a prompt are its text: those that are not in common with the prompts of two other texts. A token that joins the text
    with what is around it is the text's."""
    one, other = frames
    before = min(_alike(one, other), _alike(ids, one))
    after = min(_alike(one[::-1], other[::-1]), _alike(ids[::-1], one[::-1]))
    first = max(before, 1)  # nothing predicts the first token
    return first, max(first, len(ids) - after)


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two lists begin with in common."""
    size = min(len(one), len(other))
    return next((at for at in range(size) if one[at] != other[at]), size)


class Prompted(Protocol):
    """A row with a prompt that may be cut."""

    prompt: list[int]


def shorten_prompt(row: Prompted, text: str, length: int, model: LoadedModel, prompt: PromptTemplate) -> bool:
    """Cut the user's text, not the prompt around it, until the prompt fits; False when nothing of the text would be left."""
    assert model.renderer is not None
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if len(model.renderer.prompt_ids(prompt.messages(text[:middle]))) <= length:
            low = middle
        else:
            high = middle - 1
    row.prompt = model.renderer.prompt_ids(prompt.messages(text[:low]))
    return low > 0 and len(row.prompt) <= length


def places(model: LoadedModel) -> int:
    """Where logits of one row are read: common beginnings of labels once in a decoder, in an encoder-decoder only what all begin with."""
    assert model.renderer is not None  # decoders have one
    answers = [model.renderer.continuation_ids(label, ends_turn=True) for label in model.labels]
    if model.architecture == "encoder-decoder":
        return 1 + sum(len(answer) - 1 for answer in answers)
    return len({tuple(answer[:end]) for answer in answers for end in range(len(answer))})


def collate(rows: Sequence[TextRow], model: LoadedModel) -> TextBatch:
    """Rows for the packed forward."""
    labels = torch.tensor([row.label for row in rows], device=model.device)
    spans = tuple((row.first, row.last) for row in rows)
    return TextBatch([ScoredRow(row.prompt, row.answers) for row in rows], labels, spans)


def loss(
    model: LoadedModel, batch: TextBatch, label_smoothing: float, generative_weight: float, lm_weight: float = 0.0
) -> Loss:
    """Mean over the examples; metrics: accuracy by scoring, and the terms."""
    texts = None
    if lm_weight:
        found, texts = packed_log_probs_with_texts(model.module, batch.rows, batch.spans, model.device)
        scores = torch.stack(found)
    else:
        scores = torch.stack(label_log_probs(model, batch.rows))
    ranking = F.cross_entropy(scores, batch.labels, label_smoothing=label_smoothing)
    generative = -scores.gather(1, batch.labels[:, None]).mean()
    accuracy = float((scores.detach().argmax(-1) == batch.labels).float().mean())
    metrics = {
        "accuracy": accuracy,
        "ranking_loss": float(ranking.detach()),
        "generative_loss": float(generative.detach()),
    }
    value = ranking + generative_weight * generative
    if texts is not None:
        lengths = torch.tensor([last - first for first, last in batch.spans], device=texts.device)
        language = -(texts / lengths.clamp(min=1)).mean()
        metrics["lm_loss"] = float(language.detach())
        value = value + lm_weight * language
    return Loss(value, len(batch.labels), metrics)


def label_log_probs(model: LoadedModel, rows: Sequence[ScoredRow]) -> list[Tensor]:
    """s of every label's text, differentiable: one fp32 vector (labels,) a row."""
    renderer = model.renderer
    if isinstance(renderer, SourceRenderer):
        return pair_log_probs(model.module, rows, renderer.opening, renderer.pad_id, model.device)
    return packed_log_probs(model.module, rows, model.device)
