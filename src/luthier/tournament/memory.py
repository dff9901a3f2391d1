"""What a tournament has finished, in a small file of its run: a second command opens no engine and trains nothing for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.errors import NotFoundError, StoreError
from luthier.evaluation.records import load_records
from luthier.evaluation.result import EvalResult
from luthier.store.database import Store
from luthier.store.home import write_atomic
from luthier.store.models import find
from luthier.store.runs import find_run
from luthier.tournament.entry import Entry, Trained, Trial

STATE = "entrants.json"


@dataclass
class Memory:
    """The file ``entrants.json``, written after every finished piece of work. Safe from several threads."""

    store: Store
    folder: Path
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def recall(self, entries: Sequence[Entry]) -> None:
        """Fill in what an earlier, interrupted or finished run of the same tournament did, where it still holds."""
        known = self._read()
        for entry in entries:
            saved = known.get(entry.name, {})
            try:
                self._recall_training(entry, saved)
            except (NotFoundError, KeyError):  # a model or run was removed since: that part is done again
                entry.trained, entry.trials, entry.chosen = [], [], {}
            if entry.finished_training:
                self._recall_results(entry, saved.get("evaluations", {}))

    def remember(self, entry: Entry) -> None:
        """Write down how far an entrant has come."""
        with self._lock:
            known = self._read()
            known[entry.name] = {
                "trained": [
                    {"seed": t.seed, "target": t.target, "digest": find(self.store, t.target).digest, "run": t.run}
                    for t in entry.trained
                ],
                "chosen": dict(entry.chosen),
                "trials": [trial.as_dict() for trial in entry.trials],
                "predicted": entry.predicted.as_dict() if entry.predicted is not None else None,
                "evaluations": {target: result.run.id for target, result in entry.results.items()},
            }
            write_atomic(self.folder / STATE, json.dumps(known, indent=1) + "\n")

    def _read(self) -> dict[str, Any]:
        path = self.folder / STATE
        try:
            known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise StoreError(f"{path}: damaged: {error}", hint=f"remove it: {path}") from error
        return known

    def _recall_training(self, entry: Entry, saved: Mapping[str, Any]) -> None:
        if entry.planned.job is None or "trained" not in saved:
            return
        from luthier.training.preflight import Prediction

        entry.chosen = saved["chosen"]
        entry.predicted = Prediction.from_dict(saved["predicted"]) if saved.get("predicted") else None
        entry.trials = [Trial(**trial) for trial in saved["trials"]]
        for told in saved["trained"]:
            if find(self.store, told["target"]).digest != told["digest"]:
                raise NotFoundError(f"{told['target']} is another model by now")
            summary = find_run(self.store, told["run"]).summary
            entry.trained.append(Trained(told["seed"], told["target"], told["run"], summary))

    def _recall_results(self, entry: Entry, saved: Mapping[str, str]) -> None:
        for target in entry.targets:
            try:
                run = find_run(self.store, saved[target])
            except (NotFoundError, KeyError):
                continue
            if run.status == "done":
                entry.results[target] = EvalResult.from_run(run, load_records(self.store, run))
