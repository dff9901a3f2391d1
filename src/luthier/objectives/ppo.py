"""Proximal policy optimisation: the model answers, a reward model judges, and the answers that did better than expected become likelier.

Ouyang et al. 2022, "Training language models to follow instructions with human feedback", section 3.5, on Schulman et al. 2017. Each step the
model samples one answer to every prompt. Token t of it earns -kl_coefficient (log pi - log pi_ref), where the reference is the model before
training, and the last one the reward besides; generalised advantages A (Schulman et al. 2016, equation 16) compare that with a value head's
expectation V, and are whitened over the step. Then ``epochs`` x ``minibatches`` updates minimise, as means over tokens with rho = pi / pi_old,

    max(-A rho, -A clamp(rho, 1 - clip, 1 + clip))  +  value_coefficient value loss  -  entropy_coefficient entropy  +  ptx

The value loss is half the squared error to A + V_old, kept within ``clip`` of V_old or not, whichever is larger. ``ptx`` is the cross-entropy of
other text (PPO-ptx, equation 2 there). The value head stands on the policy's hidden states, begins at zero and is not kept.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luthier.core import catalog
from luthier.core.catalog import Entry, EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.engine import Sampling
from luthier.core.errors import InputError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress
from luthier.core.task import PromptTemplate
from luthier.data.read import read
from luthier.models.adapters import inner_of
from luthier.models.decode import logits
from luthier.models.load import LoadedModel
from luthier.models.rollout import Answer, require_decoder, sample
from luthier.models.score import Row as ScoredRow
from luthier.objectives import _judged, _ppo
from luthier.objectives._log_probs import answer_states, token_log_probs
from luthier.objectives._loss import CHUNK, Loss
from luthier.objectives._rollout import KINDS, Experience, Moment, PromptRow, Reference, read_answers
from luthier.objectives._rows import Limits
from luthier.store.database import Store

__all__ = ["KINDS"]

ARCHITECTURES = ("decoder",)
DEFAULT_FOR: tuple[str, ...] = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"decoder": {"metric": "validation_reward"}}
PATHS = ("ptx.path",)
RATE_FACTOR = 0.05
"""Of a method's learning rate: 3e-6 for all weights, TRL's, where 5e-5 is usual for supervised fine-tuning."""


class Ptx(EntryConfig):
    """``path``: a file of plain text or of chats, which no step may make less likely; ``weight`` of its mean cross-entropy beside the loss of
    the answers; ``length``: tokens of a row of plain text. Every answer brings one row along."""

    path: str = Field(min_length=1)
    weight: float = Field(1.0, gt=0)
    length: int = Field(256, ge=2)


class Config(EntryConfig):
    """``reward``: a stored reward model; or ``rewards``: a list of scorers and reward models. ``temperature`` of the answers, and of the
    probabilities that are compared.

    ``kl_coefficient``: how dear a departure from the reference is; with ``kl_target`` it adapts until answers are so many nats away (Ziegler
    et al. 2019, section 2.2). ``gamma`` and ``gae_lambda`` discount what comes later. ``clip`` bounds how far one step moves ratios and values.
    ``epochs`` of updates over a step's answers, each in ``minibatches`` parts. ``missing_eos_penalty`` is taken from the reward of an answer
    that was cut off. Defaults are those of TRL, temperature and ``max_new_tokens`` apart.
    """

    reward: str | None = Field(None, min_length=1)
    rewards: list[Any] | None = None
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(1.0, gt=0, le=2)
    kl_coefficient: float = Field(0.05, ge=0)
    kl_target: float | None = Field(None, gt=0)
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    clip: float = Field(0.2, gt=0, lt=1)
    value_coefficient: float = Field(0.1, ge=0)
    entropy_coefficient: float = Field(0.0, ge=0)
    epochs: int = Field(4, ge=1)
    minibatches: int = Field(1, ge=1)
    missing_eos_penalty: float = Field(0.0, ge=0)
    ptx: Ptx | None = None

    @model_validator(mode="after")
    def _together(self) -> Config:
        _judged.check_options(self.reward, self.rewards)
        if self.kl_target is not None and not self.kl_coefficient:
            raise ValueError("kl_target adapts kl_coefficient, which must be above 0 to begin with; got 0")
        return self


@dataclass(slots=True)
class Row:
    """An answer with what the policy of its step said of each token: log-probability, value, advantage, return; and a row of other text,
    whose loss counts ``text_weight`` times a token."""

    prompt: list[int]
    answer: list[int]
    source: str
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    text: Any = None
    text_weight: float = 0.0

    @property
    def length(self) -> int:
        """Tokens that go through the model; the last of an answer predicts nothing."""
        return len(self.prompt) + len(self.answer) - 1 + (self.text.length if self.text is not None else 0)

    @property
    def weight(self) -> int:
        """Tokens of the answer."""
        return len(self.answer)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows for one packed forward; per token of their answers in turn what the rows hold, (tokens); the batch of other text."""

    rows: list[ScoredRow]
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    text: Any
    text_weight: float


def reads(
    store: Store, base: ModelRecord, train: Dataset, prompt: PromptTemplate, config: Config
) -> Mapping[str, ModelRecord | Dataset]:
    """Reward models and the file of ``ptx``, checked without reading weights."""
    found: dict[str, ModelRecord | Dataset] = dict(_judged.reads(store, base, train, config))
    return found | ({"ptx": _ptx_file(config.ptx)} if config.ptx is not None else {})


def _ptx_file(ptx: Ptx) -> Dataset:
    found = read(Path(ptx.path).expanduser())
    if found.kind not in ("text", "chat") or not len(found):
        raise InputError(f"objective.ptx.path must be a file of plain text or of chats; {ptx.path} is {found.kind}")
    return found


def heads(model: LoadedModel, config: Config) -> None:
    """The value head: a linear layer of one output in fp32 that begins at zero. Raises UnsupportedError for another architecture."""
    require_decoder(model, "objective ppo")
    head = nn.Linear(inner_of(model).config.get_text_config().hidden_size, 1, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model.put_head(head.to(model.device))


def after(model: LoadedModel, rows: Sequence[Any], config: Config, progress: Progress) -> None:
    """Take the value head away: what is kept is a language model."""
    model.put_head(None)


def prepare(
    dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits
) -> list[PromptRow]:
    """The prompts in tokens. Raises what ``prompt_rows`` does, and DataError for rows whose answers a scorer could not score."""
    found = _judged.prompts(dataset, model, prompt, limits, "ppo", config, copies=config.epochs)
    for row in found if config.ptx is not None else ():
        assert config.ptx is not None
        row.length += config.epochs * config.ptx.length
    return found


def before(model: LoadedModel, rows: Sequence[PromptRow], config: Config, progress: Progress) -> None:
    """Raise DataError, naming rows, for prompts that leave a reward model no room for an answer."""
    _judged.Judge.of(model, config).require_readable(rows)


def rollout(model: LoadedModel, config: Config) -> Playing:
    """Answers, rewards and advantages of each step."""
    return Playing(model, config)


class Playing:
    """What a training's rollouts share: the judge, the reference, the KL coefficient as it stands, and the rows of other text."""

    def __init__(self, model: LoadedModel, config: Config) -> None:
        self._model, self._config = model, config
        self._judge = _judged.Judge.of(model, config)
        self._reference = Reference(model)
        self._coefficient = config.kl_coefficient
        self._texts: list[Any] = _texts(model, config.ptx) if config.ptx is not None else []

    def play(self, rows: Sequence[PromptRow], moment: Moment) -> Experience:
        """One answer to each prompt, judged. Raises DataError for a reward that is no finite number."""
        config, model = self._config, self._model
        sampling = Sampling(config.max_new_tokens, config.temperature, seed=moment.seed)
        sampled = sample(model, [row.prompt for row in rows], sampling, max_batch_tokens=moment.max_tokens)
        answers = [answer for (answer,) in sampled]
        rewards, metrics = self._judge(rows, answers)
        _ppo.require_finite(rewards, [row.source for row in rows])
        asked = [(row.prompt, answer.tokens) for row, answer in zip(rows, answers, strict=True)]
        log_probs, values = read_answers(model, asked, moment.max_tokens, config.temperature, model.head)
        with self._reference.answering():
            reference, _ = read_answers(model, asked, moment.max_tokens, config.temperature)
        made = self._rows(rows, answers, log_probs, values, reference, rewards)
        self._put_texts(made, moment)
        kl = sum(float((new - old).sum()) for new, old in zip(log_probs, reference, strict=True)) / len(rows)
        metrics |= {"kl": kl, "entropy": -float(torch.cat(log_probs).mean()), "kl_coefficient": self._coefficient}
        if config.kl_target is not None and moment.training:
            self._coefficient = _ppo.adapted(self._coefficient, kl, config.kl_target)
        return Experience(made, metrics, config.epochs, config.minibatches)

    def _rows(
        self,
        rows: Sequence[PromptRow],
        answers: Sequence[Answer],
        log_probs: Sequence[Tensor],
        values: Sequence[Tensor],
        reference: Sequence[Tensor],
        rewards: Sequence[float],
    ) -> list[Row]:
        made = []
        for row, answer, said, value, first, reward in zip(
            rows, answers, log_probs, values, reference, rewards, strict=True
        ):
            earned = _ppo.token_rewards(said, first, self._coefficient, reward)
            gains, returns = _ppo.advantages(earned, value, self._config.gamma, self._config.gae_lambda)
            made.append(Row(row.prompt, answer.tokens, row.source, said, value, gains, returns))
        whitened = _ppo.whitened(torch.cat([row.advantages for row in made]))
        for row, gains in zip(made, torch.split(whitened, [row.weight for row in made]), strict=True):
            row.advantages = gains
        return made

    def _put_texts(self, made: Sequence[Row], moment: Moment) -> None:
        """Give each answer a row of other text, drawn by the moment's seed, all without repetition while they last.

        The loop takes means over answer tokens: scaled by tokens of answers over tokens of text, the term is ``weight`` times the mean over
        the text's tokens.
        """
        if self._config.ptx is None:
            return
        draw = random.Random(f"{moment.seed}/ptx")
        chosen: list[Any] = []
        while len(chosen) < len(made):
            chosen += draw.sample(self._texts, min(len(self._texts), len(made) - len(chosen)))
        share = sum(row.weight for row in made) / sum(text.weight for text in chosen)
        for row, text in zip(made, chosen, strict=True):
            row.text, row.text_weight = text, self._config.ptx.weight * share

    def state(self) -> dict[str, Tensor]:
        """The KL coefficient."""
        return {"kl_coefficient": torch.tensor([self._coefficient], dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``."""
        self._coefficient = float(state["kl_coefficient"])


def _text_entry(kind: str) -> Entry:
    """The objective that makes rows of other text, and their loss."""
    return catalog.load("objectives", "causal_lm" if kind == "text" else "sft")


def _texts(model: LoadedModel, ptx: Ptx) -> list[Any]:
    dataset = _ptx_file(ptx)
    entry = _text_entry(dataset.kind)
    length = min(ptx.length, model.context_length)
    config = entry.configure({"length": length} if dataset.kind == "text" else {})
    limits = Limits(
        model.context_length if dataset.kind == "text" else length, "truncate" if dataset.kind == "chat" else "error"
    )
    found: list[Any] = entry.module.prepare(dataset, model, PromptTemplate(), config, limits)
    if not found:
        raise InputError(f"objective.ptx.path: nothing of {ptx.path} is left to learn from in rows of {length} tokens")
    return found


def collate(rows: Sequence[Row], model: LoadedModel) -> Batch:
    """One batch of a rollout's rows."""
    said, values, gains, returns = (
        torch.cat(column).to(model.device)
        for column in zip(*((row.log_probs, row.values, row.advantages, row.returns) for row in rows), strict=True)
    )
    texts = [row.text for row in rows if row.text is not None]
    entry = _text_entry_of(texts[0]) if texts else None
    return Batch(
        [ScoredRow(row.prompt, [row.answer]) for row in rows],
        said,
        values,
        gains,
        returns,
        (entry, entry.module.collate(texts, model)) if entry is not None else None,
        rows[0].text_weight,
    )


def _text_entry_of(row: Any) -> Entry:
    return _text_entry("text" if hasattr(row, "documents") else "chat")


def loss(model: LoadedModel, batch: Batch, config: Config) -> Loss:
    """Mean over the answers' tokens. Metrics: ``policy_loss``, ``value_loss``, ``clipped`` (the share of tokens whose ratio was held back),
    ``moved`` (half the squared log-ratio to the policy that answered), and ``ptx_loss``."""
    hidden, tokens = answer_states(model, batch.rows)
    log_probs = token_log_probs(model, hidden, tokens, config.temperature)
    policy, clipped = _ppo.policy_losses(log_probs, batch.log_probs, batch.advantages, config.clip)
    values = model.head(hidden.float())[:, 0]
    error = _ppo.value_losses(values, batch.values, batch.returns, config.clip)
    total = policy.mean() + config.value_coefficient * error.mean()
    metrics = {
        "policy_loss": float(policy.detach().mean()),
        "value_loss": float(error.detach().mean()),
        "clipped": float(clipped.float().mean()),
        "moved": float(0.5 * ((log_probs - batch.log_probs).detach() ** 2).mean()),
    }
    if config.entropy_coefficient:
        total = total - config.entropy_coefficient * entropies(model, hidden, config.temperature).mean()
    if batch.text is not None:
        entry, texts = batch.text
        of_text: Loss = entry(model, texts, entry.configure())
        total = total + batch.text_weight * of_text.value * (of_text.count / len(tokens))
        metrics["ptx_loss"] = float(of_text.value.detach())
    return Loss(total, len(tokens), metrics)


def entropies(model: LoadedModel, hidden: Tensor, temperature: float) -> Tensor:
    """Entropy, in nats, of the distribution over the next token at each of ``hidden`` (states, width), differentiable; logits are made a chunk
    at a time, and again for the gradient."""

    def of(states: Tensor) -> Tensor:
        scores = (logits(model.module, states).float() / temperature).log_softmax(-1)
        return -(scores.exp() * scores).sum(-1)

    pieces = torch.split(hidden, CHUNK)
    if not torch.is_grad_enabled():
        return torch.cat([of(piece) for piece in pieces])
    return torch.cat([checkpoint(of, piece, use_reentrant=False) for piece in pieces])
