"""How one training is carried out: in this process, where it shares base weights and rows with the others, or in a process of its own.

Both give the same result and leave the same run behind. ``watch`` sees every record with the share of the training that is done, and
may raise ``Halt`` where a validation is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from luthier.core.dataset import Splits
from luthier.core.run import Progress
from luthier.core.task import Task
from luthier.store.database import Store
from luthier.store.runs import folder
from luthier.tournament.entry import Trained
from luthier.training.interrupt import Halt

if TYPE_CHECKING:
    from luthier.training.shared import Shared

Watch = Callable[[Mapping[str, Any], float], None]


class Trainer(Protocol):
    """Trains what ``config`` says on the task's train and validation splits."""

    def __call__(self, config: Mapping[str, Any], progress: Progress, watch: Watch) -> Trained:
        """Raises what ``tune`` raises, and ``Halt`` when ``watch`` did."""


def training_splits(task: Task) -> Splits:
    """What training may see: no test examples."""
    return Splits(task.splits.train, task.splits.validation, replace(task.splits.test, examples=(), problems=()))


def seed_of(config: Mapping[str, Any]) -> int:
    """The seed in a run's configuration."""
    return int(config.get("train", {}).get("seed", 0))


def nobody(record: Mapping[str, Any], share: float) -> None:
    """Watches nothing."""


@dataclass
class Position:
    """Turns a loop's progress calls and records into the share of the training that is done."""

    limit_s: float | None = None
    total: int = 0

    def progress(self, stage: str, done: int, total: int) -> None:
        """Note the number of steps."""
        if stage == "train":
            self.total = total

    def share(self, record: Mapping[str, Any]) -> float:
        """0 to 1; where time ends training before the planned steps, of the time."""
        steps = float(record.get("step", 0)) / self.total if self.total else 0.0
        spent = float(record.get("elapsed_s", 0.0)) / self.limit_s if self.limit_s else 0.0
        return min(max(steps, spent), 1.0)


def _shared() -> Shared:
    from luthier.training.shared import Shared

    return Shared()


@dataclass
class InProcess:
    """Trains here, one after another."""

    store: Store
    task: Task
    shared: Shared = field(default_factory=_shared)

    def __call__(self, config: Mapping[str, Any], progress: Progress, watch: Watch) -> Trained:
        """See ``Trainer``."""
        from luthier.training import checkpoint
        from luthier.training.tune import tune

        position = Position(config.get("train", {}).get("max_seconds"))

        def moved(stage: str, done: int, total: int) -> None:
            position.progress(stage, done, total)
            progress(stage, done, total)

        try:
            done = tune(
                config,
                splits=training_splits(self.task),
                prompt=self.task.prompt,
                store=self.store,
                progress=moved,
                metrics=lambda record: watch(record, position.share(record)),
                shared=self.shared,
            )
        except Halt as halt:
            checkpoint.clear(folder(self.store, halt.run))  # who gave it up does not come back to it
            raise
        return Trained(seed_of(config), done.model.name, done.run.id, done.summary, made=not done.reused)

    def close(self) -> None:
        """Forget what was shared."""
        self.shared.clear()
