"""The one training loop.

It knows rows (with ``length`` in tokens and ``weight``, what the loss counts in them), a function that makes a batch of rows, a
function that gives the loss of a batch, and which parameters require a gradient. Methods, objectives and scoring come in from
outside. Of several processes (``training.processes``) each takes its part of every micro-batch, and the gradients are summed.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from luthier.core.errors import InputError, TrainingError
from luthier.core.run import MetricSink, Progress, no_progress
from luthier.objectives._rollout import Moment
from luthier.training import checkpoint, explosion
from luthier.training.average import Average
from luthier.training.checkpoint import Checkpoint, Position
from luthier.training.config import TrainConfig
from luthier.training.interrupt import Interruption
from luthier.training.memory import kept_heap, peak_mb
from luthier.training.optimizer import Optimizer, builder
from luthier.training.play import Update, play, updates
from luthier.training.processes import Processes
from luthier.training.schedule import rate
from luthier.training.shard import Shards
from luthier.training.tally import Tally
from luthier.training.work import Row, Work, lengths_of, planned_steps, require_weight, sources_of

_CHECKPOINT_S = 60.0
_METHOD, _ROLLOUT, _AVERAGE = "method.", "rollout.", "average."


class Steps(Protocol):
    """What a method does around every optimizer step: made by its optional function ``steps(model, config)``.

    Where a step makes several updates (a rollout's), it is asked around each of them, with the number of the step.
    Weights and gradients are the fp32 ones of what is trained, by parameter name, and may be changed in place.
    """

    def before(self, step: int, total: int, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """``step`` of ``total`` (from 1) is about to be made with these gradients of all its rows."""

    def after(self, step: int, total: int, weights: Mapping[str, Tensor]) -> None:
        """``step`` was made."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold for an exact resume."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``."""


@dataclass(frozen=True)
class Outcome:
    """How training went. ``best`` are the metrics of the weights that were kept; ``ended`` is why it ended. ``train_s`` is time in steps,
    ``elapsed_s`` with validations."""

    steps: int
    tokens: int
    train_s: float
    ended: str
    best_step: int
    best: Mapping[str, float] = field(default_factory=dict)
    elapsed_s: float = 0.0


def train(
    module: nn.Module,
    work: Work,
    config: TrainConfig,
    *,
    folder: Path,
    metrics: MetricSink,
    validate: Callable[[], Mapping[str, float]] | None = None,
    resume: Checkpoint | None = None,
    progress: Progress = no_progress,
    steps: Steps | None = None,
    shards: Shards | None = None,
) -> Outcome:
    """Train what requires a gradient in ``module`` on ``work``; checkpoints go to ``folder``, one record a step to ``metrics``.

    ``steps`` is what the method does around each step. With ``validate`` (called with the module in eval mode; returns flat metrics), the weights of the best validation are the
    result, otherwise the last ones. ``shards`` are those of ``module``, if it was cut: then every process has its ``validate``. With ``resume`` it goes on exactly where that checkpoint was taken.

    Raises DataError when all labels are masked, TrainingError when there is nothing to train, or the loss is not a number or explodes (the
    last checkpoint before stays), StoreError when
    the disk refuses, KeyboardInterrupt after Ctrl-C or SIGTERM, with a checkpoint of the last step.
    """
    if not work.rows:
        raise TrainingError("nothing to train on: there are no rows")
    require_weight(work.rows, "training")
    if not any(p.requires_grad for p in module.parameters()):
        raise TrainingError("nothing to train: the method leaves no parameter that requires a gradient")
    loop = _Loop(
        module,
        work,
        config,
        folder=folder,
        metrics=metrics,
        validate=validate,
        progress=progress,
        around=steps,
        shards=shards,
    )
    return loop.run(resume)


def _shown(sources: Sequence[str]) -> str:
    return ", ".join(sources[:8]) + (f" and {len(sources) - 8} more" if len(sources) > 8 else "")


class _Loop:
    """State of one training: model, optimizer and position."""

    def __init__(
        self,
        module: nn.Module,
        work: Work,
        config: TrainConfig,
        *,
        folder: Path,
        metrics: MetricSink,
        validate: Callable[[], Mapping[str, float]] | None,
        progress: Progress,
        around: Steps | None = None,
        shards: Shards | None = None,
    ) -> None:
        self.around, self.shards = around, shards
        self.module, self.work, self.config, self.folder = module, work, config, folder
        self.metrics, self.validate, self.progress = metrics, validate, progress
        self.device = next(p for p in module.parameters() if p.requires_grad).device
        self.processes = Processes(self.device)
        self.lengths = lengths_of(work.rows)
        self.epoch = -1
        self.position = Position()
        self.steps = self._plan(0)
        self.steps_per_epoch = len(self.steps)
        drawn = [self.lengths[i] for step in self.steps for indices in step for i in indices]
        self.total, self.ends = planned_steps(config, drawn, self.steps_per_epoch)
        self.optimizer = Optimizer(module, builder(config.optimizer), weight_decay=config.weight_decay)
        self.average = Average(self.optimizer, config.ema) if config.ema is not None else None

    def run(self, resume: Checkpoint | None) -> Outcome:
        torch.manual_seed(self.config.seed)
        if resume is not None:
            tensors = resume.tensors()
            self.optimizer.load_state(tensors)
            if self.around is not None:
                own = {k.removeprefix(_METHOD): v for k, v in tensors.items() if k.startswith(_METHOD)}
                self.around.load_state(own)
            if self.work.rollout is not None:
                own = {k.removeprefix(_ROLLOUT): v for k, v in tensors.items() if k.startswith(_ROLLOUT)}
                self.work.rollout.load_state(own)
            if self.average is not None:
                self.average.load_state(
                    {k.removeprefix(_AVERAGE): v for k, v in tensors.items() if k.startswith(_AVERAGE)}
                )
            checkpoint.restore_generators(tensors)
            self.position = resume.position
        self.module.train()
        self._agree()
        self.started = self.saved = time.perf_counter()
        self.elapsed_before = self.position.elapsed_s
        try:
            with Interruption() as interruption, kept_heap():
                ended = self._steps(interruption)
            self._keep_best()
        finally:
            self.optimizer.release()
            self.module.eval()
        at = self.position
        best_step = at.best_step if at.best_step is not None else at.step
        return Outcome(at.step, at.tokens, at.train_s, ended, best_step, at.best_metrics, at.elapsed_s)

    def _steps(self, interruption: Interruption) -> str:
        """Step until something ends it; returns what did."""
        at = self.position
        self.progress("train", at.step, self.total)
        ended = self._ended()
        while not ended:
            record, suspect = self._step()
            at.elapsed_s = self._elapsed()
            ended = self._ended()
            if self._validation_is_due(bool(ended)):
                record |= self._validate()
                at.elapsed_s = self._elapsed()
                ended = ended or self._ended()
            self.metrics({**record, "elapsed_s": round(at.elapsed_s, 3), "peak_mb": round(peak_mb(self.device), 1)})
            self.progress("train", at.step, self.total)
            if self.processes.tell(lambda: interruption.asked):
                self._checkpoint()
                raise KeyboardInterrupt
            self._require_no_explosion()
            if not ended and not suspect and self._checkpoint_is_due():
                self._checkpoint()
        return ended

    def _elapsed(self) -> float:
        """Seconds so far, by the leader's clock."""
        found: float = self.processes.tell(lambda: self.elapsed_before + time.perf_counter() - self.started)
        return found

    def _agree(self) -> None:
        """Begin with the leader's weights, where there are several processes."""
        if self.processes.count > 1:
            for weights in self.optimizer.masters().values():
                weights.copy_(self.processes.sum(weights if self.processes.leads else torch.zeros_like(weights)))
            self.optimizer.publish()

    def _ended(self) -> str:
        at, config = self.position, self.config
        if at.step >= self.total:
            return self.ends
        if config.max_tokens is not None and at.step and at.tokens + self._tokens_of(at.step) > config.max_tokens:
            return "max_tokens"
        if config.max_seconds is not None and at.elapsed_s >= config.max_seconds and at.step:
            return "max_seconds"
        if config.patience is not None and at.without_gain >= config.patience:
            return "patience"
        return ""

    def _tokens_of(self, step: int) -> int:
        steps = self._plan(step // self.steps_per_epoch)
        return sum(self.lengths[i] for indices in steps[step % self.steps_per_epoch] for i in indices)

    def _on_schedule(self) -> float:
        """Where the schedule stands: the step, or further where ``max_seconds`` will end training before the planned steps."""
        at, limit = self.position, self.config.max_seconds
        spent = at.elapsed_s / limit if limit is not None else 0.0
        return max(at.step, min(spent, 1.0) * (self.total - 1))

    def _plan(self, epoch: int) -> list[list[list[int]]]:
        """The steps of ``epoch``: the same for the same seed, also after a resume."""
        if epoch != self.epoch:
            c = self.config
            self.steps = self.work.plan(
                self.lengths,
                batch_size=c.batch_size,
                max_tokens=c.max_tokens_per_batch * self.processes.count,  # each takes its part
                seed=c.seed,
                epoch=epoch,
                losses=self.position.source_losses,
            )
            self.epoch = epoch
        return self.steps

    def _step(self) -> tuple[dict[str, Any], bool]:
        """One step: an optimizer update over its micro-batches, or several where it begins with a rollout; returns its record, and whether
        its loss is suspect."""
        began, at, config = time.perf_counter(), self.position, self.config
        self.processes.seed(config.seed, at.step)
        epoch, index = divmod(at.step, self.steps_per_epoch)
        learning_rate = rate(
            self._on_schedule(),
            total=self.total,
            peak=config.learning_rate,
            schedule=config.schedule,
            warmup=config.warmup,
            curve=config.curve,
        )
        planned = self._plan(epoch)[index]
        sources = [] if self.work.joined else [self.work.source_of(indices) for indices in planned]
        rows_of = Counter(source for source, indices in zip(sources, planned, strict=False) for _ in indices)
        found, made = self._updates([[self.work.rows[i] for i in indices] for indices in planned])
        tally, norms, tokens = Tally(), [], 0
        for update in made:
            norms.append(self._update(update, learning_rate, tally, sources))
            tokens += sum(row.length for rows in update for row in rows)
        tally = self._over_all(tally)
        seconds = time.perf_counter() - began
        at.step, at.tokens, at.train_s = at.step + 1, at.tokens + tokens, at.train_s + seconds
        rows = [self.work.rows[i] for indices in planned for i in indices]
        means = tally.means(rows_of if self.work.apart else None)
        # what a rollout's objective minimises is a surrogate, whose size says nothing
        watched = "loss" in means and self.work.rollout is None
        suspect = watched and explosion.note(at, means["loss"], sources_of(rows), config.max_rise)
        record = {
            "step": at.step,
            "epoch": round(at.step / self.steps_per_epoch, 4),
            **means,
            **found,
            **self._shares(epoch),
            "learning_rate": learning_rate,
            "grad_norm": sum(norms) / len(norms),
            "tokens": at.tokens,
            "tokens_per_s": round(tokens / seconds, 1),
        }
        return record, suspect

    def _updates(self, step: Update) -> tuple[Mapping[str, float], Iterable[Update]]:
        """What the step's rollout says of itself, and the optimizer updates that its rows are for."""
        if self.work.rollout is None:
            return {}, [step]
        at, config = self.position, self.config
        moment = Moment(at.step, config.seed, config.max_tokens_per_batch)
        experience = play(self.module, self.work.rollout, [row for rows in step for row in rows], moment)
        return experience.metrics, updates(experience, moment, whole=self.work.whole)

    def _update(self, batches: Update, learning_rate: float, tally: Tally, sources: Sequence[str | None]) -> float:
        """One optimizer update over ``batches``, whose losses go to ``tally``; returns the gradient's norm. ``sources`` names those of the
        batches, as far as it goes."""
        weights = self._weights(batches, sources)
        wrong = ""
        for whole, source in zip_longest(batches, sources):
            rows, counts = self._own(whole)
            if wrong or not rows:
                continue
            loss = self.work.loss(self.work.collate(rows))
            wrong = self._wrong(float(loss.value.detach()), "loss", rows)
            if self.shards is not None:  # none begins a backward that another one does not
                self.shards.settle()
                self._require_nothing(wrong)
            if not wrong:
                torch.autograd.backward(loss.value * (loss.count / weights[source] if counts else 0.0))
                self.optimizer.accumulate()
                if counts:
                    tally.add(loss, source)
        self._require_nothing(wrong)
        step = self.position.step + 1
        if self.processes.count > 1:
            self.optimizer.reduce(self.processes.sum)
        if self.around is not None:
            self.around.before(step, self.total, self.optimizer.masters(), self.optimizer.gradients())
        norm = self.optimizer.step(learning_rate, self.config.clip)
        self._require_nothing(self._wrong(norm, "gradient", [row for rows in batches for row in rows]))
        if self.around is not None:
            self.around.after(step, self.total, self.optimizer.masters())
            self.optimizer.publish()
        if self.average is not None:
            self.average.update()
        return norm

    def _own(self, whole: Sequence[Row]) -> tuple[list[Row], bool]:
        """This process's rows of a micro-batch, none when all that the loss would count is masked; and whether they count. Where weights lie in
        parts, a process without any computes a row that does not, because the others wait for its parts."""
        rows = self.processes.part(whole)
        if any(row.weight for row in rows):
            return rows, True
        if self.shards is None:
            return [], False
        return [row for row in whole if row.weight][:1], False

    def _weights(self, batches: Update, sources: Sequence[str | None]) -> dict[str | None, float]:
        """What an update's losses are divided by, by source: all that they count, or what those of the source do over its share of the rows."""
        if not self.work.apart:
            return dict.fromkeys([None, *sources], sum(row.weight for rows in batches for row in rows))
        counted, rows_of = Counter[str | None](), Counter[str | None]()
        for rows, source in zip(batches, sources, strict=True):
            counted[source] += sum(row.weight for row in rows)
            rows_of[source] += len(rows)
        return {source: counted[source] * rows_of.total() / rows_of[source] for source in counted}

    def _shares(self, epoch: int) -> dict[str, float]:
        """The sources' shares of ``epoch``, where they are not always the same."""
        layout = self.work.layout
        if layout is None or not layout.mixture.moves:
            return {}
        shares = layout.mixture.shares(layout.sizes, epoch, self.position.source_losses)
        return {f"share/{name}": round(share, 4) for name, share in zip(layout.names, shares, strict=True)}

    def _over_all(self, tally: Tally) -> Tally:
        """What all processes have counted."""
        if self.processes.count == 1:
            return tally
        return Tally.sum(self.processes.gather(tally.as_dict()))

    def _wrong(self, value: float, what: str, rows: Sequence[Row]) -> str:
        """What is wrong with a value that is no number, and with which rows; else nothing."""
        if math.isfinite(value):
            return ""
        return f"the {what} is {value} at step {self.position.step + 1} (rows {_shown(sources_of(rows))})"

    def _require_nothing(self, wrong: str) -> None:
        """Raise TrainingError in all processes for what one of them found."""
        found = [each for each in self.processes.gather(wrong) if each]
        if found:
            self._fail(found[0])

    def _require_no_explosion(self) -> None:
        said = explosion.explosion(self.position, self.config.max_rise)
        if said:
            self._fail(f"{said} (rows {_shown(self.position.suspect_rows)})")

    def _fail(self, what: str) -> NoReturn:
        kept = checkpoint.latest(self.folder)
        raise TrainingError(
            what,
            hint=f"try a smaller train.learning_rate (now {self.config.learning_rate:g}) or a longer train.warmup; "
            + (f"the checkpoint of step {kept.position.step} is kept" if kept else "no checkpoint was taken yet"),
        )

    def _validation_is_due(self, ended: bool) -> bool:
        if self.validate is None:
            return False
        every = self.config.validate_every or self.steps_per_epoch
        return ended or self.position.step % every == 0 or self._epoch_is_heard()

    def _epoch_is_heard(self) -> bool:
        """Whether an epoch ends here whose losses decide the shares of the next ones."""
        layout = self.work.layout
        return (
            layout is not None
            and layout.mixture.sampling == "dynamic"
            and self.position.step % self.steps_per_epoch == 0
        )

    def _validate(self) -> dict[str, float]:
        """Validate, note whether it is the best so far, keep its weights if so."""
        assert self.validate is not None
        at = self.position
        self.module.eval()
        with self._averaged(), torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            if self.shards is None:
                said = self.processes.tell(self.validate)
            else:
                own = self.validate()
                said = self.processes.tell(lambda: own)
            found = {f"validation_{k.removeprefix('validation_')}": float(v) for k, v in said.items()}
        self.module.train()
        if self._epoch_is_heard() and self.work.layout is not None:
            at.source_losses.append({name: found[f"validation_loss/{name}"] for name in self.work.layout.names})
            self.epoch = -1  # what was planned for the next epoch did not know them
        name = self.config.metric
        if name not in found:
            raise InputError(f"train.metric must be one of {', '.join(sorted(found))}; got {name!r}")
        value = -found[name] if "loss" in name or "perplexity" in name else found[name]
        if at.best_value is None or value > at.best_value:
            at.best_value, at.best_step, at.without_gain, at.best_metrics = value, at.step, 0, found
            if at.step < self.total and self.processes.leads:  # at the end the weights are there already
                with self._averaged():
                    checkpoint.save_best(self.folder, at.step, self.optimizer.masters())
        else:
            at.without_gain += 1
        return found

    def _averaged(self) -> AbstractContextManager[None]:
        """While entered, the weights are those that are validated and kept."""
        return self.average.shown() if self.average is not None else nullcontext()

    def _keep_best(self) -> None:
        """Leave the weights to keep in the model: the average, where there is one, and those of the best validation."""
        at = self.position
        if self.average is not None:
            self.average.swap()
        if at.best_step is not None and at.best_step != at.step and self.processes.leads:
            self.optimizer.load_masters(checkpoint.load_best(self.folder, at.best_step))

    def _checkpoint_is_due(self) -> bool:
        every = self.config.checkpoint_every
        if every is not None:
            return self.position.step % every == 0
        return time.perf_counter() - self.saved >= _CHECKPOINT_S

    def _checkpoint(self) -> None:
        if self.processes.leads:
            own = self.around.state() if self.around is not None else {}
            state = self.optimizer.state() | {_METHOD + key: tensor for key, tensor in own.items()}
            if self.average is not None:
                state |= {_AVERAGE + key: tensor for key, tensor in self.average.state().items()}
            if self.work.rollout is not None:
                state |= {_ROLLOUT + key: tensor for key, tensor in self.work.rollout.state().items()}
            checkpoint.save(self.folder, self.position, state)
        self.saved = time.perf_counter()
