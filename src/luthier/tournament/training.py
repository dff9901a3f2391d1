"""An entrant's training: its search, then the chosen settings with every further seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from luthier.core.run import Progress
from luthier.store.database import Store
from luthier.tournament.entry import Entry
from luthier.tournament.plan import configuration, defaults
from luthier.tournament.trainer import Trainer, nobody


@dataclass(frozen=True)
class Training:
    """Trains entrants with ``train``; ``keep`` is called after each finished piece."""

    store: Store
    folder: Path
    train: Trainer
    keep: Callable[[Entry], None]

    def __call__(self, entry: Entry, progress: Progress) -> None:
        """Do what is missing. Raises what training raises; what was finished is kept."""
        if entry.planned.entrant.search is not None and not entry.trained:
            self._search(entry, progress)
        for seed in entry.planned.seeds[len(entry.trained) :]:
            config = configuration(entry.planned, entry.chosen, seed)
            entry.trained.append(self.train(config, self._of_seed(entry, seed, progress), nobody))
            self.keep(entry)

    def _search(self, entry: Entry, progress: Progress) -> None:
        from luthier.tournament.search import Course

        planned, search = entry.planned, entry.planned.entrant.search
        assert planned.job is not None and search is not None
        place = self.folder / "search"
        place.mkdir(exist_ok=True)
        found = Course(
            store=self.store,
            path=place / f"{hashlib.sha256(entry.name.encode()).hexdigest()[:16]}.db",
            name=entry.name,
            search=search,
            space=planned.space,
            metric=search.metric or planned.job.config.train.metric,
            configure=lambda params: configuration(planned, params),
            first=defaults(planned),
            train=self.train,
            progress=progress,
        ).run()
        entry.trials, entry.chosen, entry.trained = list(found.trials), found.params, [found.trained]
        self.keep(entry)

    def _of_seed(self, entry: Entry, seed: int, progress: Progress) -> Progress:
        if len(entry.planned.seeds) == 1:
            return progress
        return lambda stage, done, total: progress(f"{stage} (seed {seed})" if stage == "train" else stage, done, total)
