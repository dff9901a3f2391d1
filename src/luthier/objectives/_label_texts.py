"""Classification by a decoder or an encoder-decoder: the labels' texts are scored as answers, and the scores compete.

For input x and label texts y: s(y) = log p(y + end of turn | prompt of x), all labels in one packed forward. The loss is

    -log softmax(s)[right]  +  generative_weight * -s(right)

The first term ranks the closed set (and is what an evaluation by scoring does); the second is plain supervised fine-tuning on the right
answer, which makes free generation say the label and stop.
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
from luthier.models.score import packed_log_probs
from luthier.models.seq2seq import pair_log_probs
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits
from luthier.objectives._shown import Line, answer_lines


@dataclass(slots=True)
class TextRow:
    """Prompt ids, every label's ids (one list that all rows share), and the right label's index."""

    prompt: list[int]
    answers: list[list[int]]
    label: int
    source: str

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
    """Rows for one packed forward; labels (rows)."""

    rows: list[ScoredRow]
    labels: Tensor

    def lines(self) -> list[Line]:
        """What is read and asked, token by token."""
        return answer_lines(self.rows)


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, limits: Limits) -> list[TextRow]:
    """Tokenise prompts and labels. Raises DataError when two labels have the same tokens, or a row is too long."""
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
    rows = []
    for example, ids in zip(dataset.examples, prompts, strict=True):
        row = TextRow(ids, answers, place[str(example.target)], example.source or example.id)
        shorten = partial(shorten_prompt, row, example.text, keep, model, prompt)
        if limits.admit(example, len(ids) + longest, shorten):
            rows.append(row)
    limits.check()
    return rows


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


def collate(rows: Sequence[TextRow], model: LoadedModel) -> TextBatch:
    """Rows for the packed forward."""
    labels = torch.tensor([row.label for row in rows], device=model.device)
    return TextBatch([ScoredRow(row.prompt, row.answers) for row in rows], labels)


def loss(model: LoadedModel, batch: TextBatch, label_smoothing: float, generative_weight: float) -> Loss:
    """Mean over the examples; metrics: accuracy by scoring, and the two terms."""
    scores = torch.stack(label_log_probs(model, batch.rows))
    ranking = F.cross_entropy(scores, batch.labels, label_smoothing=label_smoothing)
    generative = -scores.gather(1, batch.labels[:, None]).mean()
    accuracy = float((scores.detach().argmax(-1) == batch.labels).float().mean())
    metrics = {
        "accuracy": accuracy,
        "ranking_loss": float(ranking.detach()),
        "generative_loss": float(generative.detach()),
    }
    return Loss(ranking + generative_weight * generative, len(batch.labels), metrics)


def label_log_probs(model: LoadedModel, rows: Sequence[ScoredRow]) -> list[Tensor]:
    """s of every label's text, differentiable: one fp32 vector (labels,) a row."""
    renderer = model.renderer
    if isinstance(renderer, SourceRenderer):
        return pair_log_probs(model.module, rows, renderer.opening, renderer.pad_id, model.device)
    return packed_log_probs(model.module, rows, model.device)
