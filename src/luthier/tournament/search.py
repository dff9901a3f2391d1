"""A search over one entrant's settings: Optuna proposes, ``tune`` trains, the validation split judges.

The study is a SQLite file in the tournament's folder, written trial by trial, so a killed search goes on with the trial that it was
in: its settings stand in the study, and its training goes on at its checkpoint. The sampler is seeded anew for each trial from the
search's seed and the trial's number; a search that was interrupted therefore proposes what an unbroken one would have.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConflictError, InputError, LuthierError, NotFoundError, TrainingError
from luthier.core.run import Progress
from luthier.store import runs
from luthier.store.database import Store
from luthier.store.models import find, remove
from luthier.tournament.entry import Trained, Trial
from luthier.tournament.seeds import metric_falls
from luthier.tournament.settings import Search
from luthier.tournament.spaces import Choice, Range, Space, grid_size
from luthier.tournament.trainer import Trainer, nobody, seed_of
from luthier.training.interrupt import Halt

if TYPE_CHECKING:
    import optuna

_RUNGS_FROM = 25  # percent of a training; the next rung is at twice that
_HALF = 2
_TRIAL = "trial"  # key of a trial's own record in the study


@dataclass(frozen=True)
class Found:
    """What a search found: every trial, the best one's settings and its model."""

    trials: Sequence[Trial]
    params: Mapping[str, Any]
    trained: Trained


@dataclass(frozen=True)
class Course:
    """All that a search needs. ``configure`` makes a run's configuration of a trial's settings; ``first`` is tried first, where it lies in
    the space: the method's defaults, so that a search never ends below them on the validation split."""

    store: Store
    path: Path
    name: str
    search: Search
    space: Space
    metric: str
    configure: Callable[[Mapping[str, Any]], dict[str, Any]]
    first: Mapping[str, Any]
    train: Trainer
    progress: Progress

    def run(self) -> Found:
        """Do what is missing of the trials, then drop the models that lost.

        Raises LuthierError when no trial finished, and what a full disk or Ctrl-C raises; finished trials stay.
        """
        with _quiet():
            study = self._study()
            while (trial := self._next(study)) is not None:
                self._try(study, trial)
            return self._found(study)

    @property
    def _trials(self) -> int:
        return min(self.search.trials, grid_size(self.space)) if self.search.sampler == "grid" else self.search.trials

    def _study(self) -> optuna.Study:
        import optuna

        study = optuna.create_study(
            storage=f"sqlite:///{self.path}",
            study_name=self.name,
            direction="minimize" if metric_falls(self.metric) else "maximize",
            pruner=_pruner(self.search),
            load_if_exists=True,
        )
        for params in self._given()[len(study.get_trials(deepcopy=False)) :]:
            study.enqueue_trial(params)
        return study

    def _given(self) -> list[dict[str, Any]]:
        """Trials that no sampler has to propose: the whole grid, shuffled (there may be fewer trials), or the defaults where they lie in
        the space."""
        if self.search.sampler == "grid":
            grid = [
                dict(zip(self.space, values, strict=True)) for values in product(*map(_values, self.space.values()))
            ]
            random.Random(self.search.seed).shuffle(grid)
            return grid[: self._trials]
        known = self.first.keys() == self.space.keys()
        inside = known and all(dimension.holds(self.first[key]) for key, dimension in self.space.items())
        return [dict(self.first)] if inside else []

    def _next(self, study: optuna.Study) -> optuna.Trial | None:
        """The trial that was running when a process died, else a new one; None when there were enough."""
        import optuna

        trials = study.get_trials(deepcopy=False)
        running = [t for t in trials if t.state == optuna.trial.TrialState.RUNNING]
        if running:
            return optuna.trial.Trial(study, running[0]._trial_id)
        if len(finished(study)) >= self._trials:
            return None
        study.sampler = _sampler(self.search, len(trials))
        return study.ask()

    def _try(self, study: optuna.Study, trial: optuna.Trial) -> None:
        """Train one trial's settings and tell the study how it went."""
        import optuna

        params = {key: _suggest(trial, key, dimension) for key, dimension in self.space.items()}
        watched = _Watched(trial, self.metric, prunes=self.search.pruner == "halving")
        states = optuna.trial.TrialState
        try:
            trained = self.train(self.configure(params), self._stages(trial.number), watched)
        except Halt as halt:
            record = Trial(trial.number, params, "pruned", run=halt.run, reason=str(halt), **watched.seen())
            self._tell(study, trial, record, states.PRUNED)
        except (TrainingError, InputError) as error:
            record = Trial(trial.number, params, "failed", reason=error.message, **watched.seen())
            self._tell(study, trial, record, states.FAIL)
        else:
            value = _value(trained.summary, self.metric)
            spent = trained.spent
            record = Trial(
                trial.number,
                params,
                "done",
                value,
                trained.run,
                trained.target,
                spent.seconds,
                spent.tokens,
                watched.curve,
                made=trained.made,
            )
            self._tell(study, trial, record, states.COMPLETE)

    def _tell(self, study: optuna.Study, trial: optuna.Trial, record: Trial, state: optuna.trial.TrialState) -> None:
        import optuna

        trial.set_user_attr(_TRIAL, record.as_dict())
        complete = state == optuna.trial.TrialState.COMPLETE
        study.tell(trial, record.value if complete else None, state=state)

    def _stages(self, number: int) -> Progress:
        def shown(stage: str, done: int, total: int) -> None:
            if stage == "train":
                self.progress(f"trial {number + 1} of {self._trials}", done, total)

        return shown

    def _found(self, study: optuna.Study) -> Found:
        trials = records(study)
        done = [t for t in trials if t.state == "done" and t.value is not None]
        if not done:
            reasons = sorted({t.reason for t in trials if t.reason})
            raise TrainingError(
                f"none of the {len(trials)} trials finished: {'; '.join(reasons[:3])}",
                hint="narrow search.space, for example to smaller learning rates",
            )
        sign = 1.0 if metric_falls(self.metric) else -1.0
        best = min(done, key=lambda t: (sign * (t.value or 0.0), t.number))
        trained = self._model(best)
        self._drop([t for t in done if t.target != trained.target])
        return Found(trials, best.params, trained)

    def _model(self, best: Trial) -> Trained:
        """The best trial's model, trained again where somebody has removed it."""
        config = self.configure(best.params)
        try:
            find(self.store, best.target)
        except NotFoundError:
            return self.train(config, self._stages(best.number), nobody)
        return Trained(seed_of(config), best.target, best.run, runs.find_run(self.store, best.run).summary)

    def _drop(self, lost: Sequence[Trial]) -> None:
        """Remove the models that this search made and that lost; their runs with their curves stay. What was there before, or what
        something else needs by now, is left alone."""
        for trial in lost:
            try:
                if trial.made and find(self.store, trial.target).run_id == trial.run:
                    remove(self.store, trial.target)
            except (NotFoundError, ConflictError):
                continue


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that ended in some way."""
    return [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]


def records(study: optuna.Study) -> list[Trial]:
    """What was told of each finished trial."""
    return [Trial(**t.user_attrs[_TRIAL]) for t in finished(study) if _TRIAL in t.user_attrs]


class _Watched:
    """Reports validations to the study, and halts a trial that the pruner gives up."""

    def __init__(self, trial: optuna.Trial, metric: str, *, prunes: bool) -> None:
        self.trial, self.metric, self.prunes = trial, metric, prunes
        self.curve: list[list[float]] = []
        self.last: Mapping[str, Any] = {}

    def __call__(self, record: Mapping[str, Any], share: float) -> None:
        self.last = record
        if not any(key.startswith("validation_") for key in record):
            return
        if self.metric not in record:
            known = sorted(key for key in record if key.startswith("validation_"))
            raise InputError(f"search.metric must be one of {', '.join(known)}; got {self.metric!r}")
        value = float(record[self.metric])
        self.curve.append([round(share, 4), value])
        percent = round(100 * share)
        sign = 1.0 if metric_falls(self.metric) else -1.0
        best = sign * min(
            sign * v for _, v in self.curve
        )  # the weights of the best validation are what a training keeps
        self.trial.report(best, percent)
        if self.prunes and percent < 100 and self.trial.should_prune():
            raise Halt(f"{self.metric} {best:.4g} after {percent}% is among the worse half of the trials so far")

    def seen(self) -> dict[str, Any]:
        """What is known of a trial that did not finish."""
        seconds, tokens = float(self.last.get("elapsed_s", 0.0)), int(self.last.get("tokens", 0))
        sign = 1.0 if metric_falls(self.metric) else -1.0
        value = sign * min(sign * v for _, v in self.curve) if self.curve else None
        return {"value": value, "seconds": seconds, "tokens": tokens, "curve": self.curve}


def _values(dimension: Range | Choice) -> tuple[Any, ...]:
    return dimension.samples()


def _suggest(trial: optuna.Trial, key: str, dimension: Any) -> Any:
    if isinstance(dimension, Range):
        if dimension.whole:
            return trial.suggest_int(key, int(dimension.low), int(dimension.high), log=dimension.log)
        return trial.suggest_float(key, dimension.low, dimension.high, log=dimension.log)
    return trial.suggest_categorical(key, list(dimension.values))


def _sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of trial ``number``."""
    import optuna

    seed = search.seed * 100_003 + number
    if search.sampler != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, search.trials // 3))


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    import optuna

    if search.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=_RUNGS_FROM, reduction_factor=_HALF)


def _value(summary: Mapping[str, Any], metric: str) -> float:
    value = summary.get(metric)
    if not isinstance(value, int | float):
        raise LuthierError(
            f"the search needs {metric} on the validation split, which the run did not compute",
            hint="give the task validation rows: data.split.validation=0.1",
        )
    return float(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's messages are its own; what matters is in the study."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"optuna\b.*")
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
