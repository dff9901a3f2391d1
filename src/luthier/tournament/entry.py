"""How far each entrant has come: what was planned, its trials, its trained models, their evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.core.model import ModelRecord
from luthier.core.task import Task
from luthier.evaluation.result import EvalResult
from luthier.tournament.budget import Spent, total
from luthier.tournament.entrant import Entrant
from luthier.tournament.seeds import best_seed, metric_falls, validation_value
from luthier.tournament.settings import Settings
from luthier.tournament.spaces import Choice, Range

if TYPE_CHECKING:
    from luthier.training.preflight import Prediction
    from luthier.training.resolve import Job


@dataclass(frozen=True)
class Planned:
    """An entrant with what is known before it runs. ``base`` is None for models that are not in the store; ``job`` is its training as it
    is without a search. ``space`` is what its search varies. ``documents`` is the state of the base that it answers from, ``task`` the task as
    it is trained on it, with what is found for each question: None where both are the same for all."""

    entrant: Entrant
    base: ModelRecord | None
    job: Job | None = None
    settings: Settings = field(default_factory=Settings)
    space: Mapping[str, Range | Choice] = field(default_factory=dict)
    documents: str = ""
    task: Task | None = None

    @property
    def serving(self) -> Mapping[str, str]:
        """Engine -> swap, merge or no: where its result can be served; empty when nothing is trained."""
        return self.job.serving if self.job is not None else {}

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that it is trained with; none when it is not trained."""
        if self.job is None:
            return ()
        return self.settings.seeds or (self.job.config.train.seed,)

    @property
    def trainings(self) -> int:
        """How many there are at most: the trials of its search, and a repeat for each further seed."""
        search = self.entrant.search
        return 0 if self.job is None else (search.trials if search else 1) + len(self.seeds) - 1

    @property
    def key(self) -> list[Any]:
        """What makes its work equal to other work."""
        entrant = self.entrant.as_dict()
        plain: list[Any] = [entrant, self.base.digest if self.base else "", self.job.key if self.job else ""]
        plain += [self.documents] if self.documents else []
        if self.job is None:
            return plain
        budget = self.settings.budget.model_dump() if self.settings.budget else None
        more = [list(self.settings.seeds), budget, {k: asdict(v) for k, v in self.space.items()}]
        return [*plain, more] if any(more) else plain


@dataclass(frozen=True)
class Trained:
    """A model that was trained: with which seed, by which run, and what the run's summary says. ``made``: just now, not before."""

    seed: int
    target: str
    run: str
    summary: Mapping[str, Any]
    made: bool = False

    @property
    def spent(self) -> Spent:
        """What its training took."""
        told = self.summary
        return Spent(float(told.get("elapsed_s") or told.get("train_s") or 0.0), int(told.get("tokens") or 0), 1)


@dataclass(frozen=True)
class Trial:
    """One try of a search. ``state``: done, pruned or failed; ``value`` the metric on the validation split; ``curve`` has (share of the
    training, value) of each validation. ``made``: its model was made by this search."""

    number: int
    params: Mapping[str, Any]
    state: str
    value: float | None = None
    run: str = ""
    target: str = ""
    seconds: float = 0.0
    tokens: int = 0
    curve: Sequence[Sequence[float]] = ()
    reason: str = ""
    made: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


@dataclass
class Entry:
    """One entrant on its way. ``results`` maps model to evaluation. ``failure`` is the reason why it went no further."""

    planned: Planned
    trained: list[Trained] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    chosen: Mapping[str, Any] = field(default_factory=dict)
    results: dict[str, EvalResult] = field(default_factory=dict)
    predicted: Prediction | None = None
    failure: str = ""

    @property
    def name(self) -> str:
        """The entrant's name."""
        return self.planned.entrant.name

    @property
    def targets(self) -> tuple[str, ...]:
        """The models that answer: one a seed, or the entrant's own model."""
        if self.planned.job is None:
            return (self.planned.entrant.model,)
        return tuple(each.target for each in self.trained)

    @property
    def finished_training(self) -> bool:
        """Whether no training is missing."""
        return self.planned.job is None or len(self.trained) == len(self.planned.seeds)

    @property
    def scored(self) -> list[EvalResult]:
        """The evaluations in the order of the seeds, empty unless all are there."""
        found = [self.results[target] for target in self.targets if target in self.results]
        return found if self.targets and self.finished_training and len(found) == len(self.targets) else []

    @property
    def best(self) -> int:
        """The place of the model to promote, by its validation."""
        if self.planned.job is None or not self.trained:
            return 0
        metric = self.planned.job.config.train.metric
        values = [validation_value(each.summary, metric) for each in self.trained]
        return best_seed(values, lower_is_better=metric_falls(metric))

    @property
    def spent(self) -> Spent:
        """What finding one model took: all trials, or the one training."""
        if self.trials:
            return total(Spent(trial.seconds, trial.tokens, 1) for trial in self.trials)
        return self.trained[0].spent if self.trained else Spent()

    @property
    def repeats(self) -> Spent:
        """What the repeats with other seeds took, which measure and do not tune."""
        return total(each.spent for each in self.trained[1:])
