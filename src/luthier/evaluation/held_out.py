"""What models are evaluated on, by the records of the evaluations: texts that must not come back as training data."""

from __future__ import annotations

from pathlib import Path

from luthier.data.read import read
from luthier.evaluation.contamination import parts_of
from luthier.evaluation.records import read_records
from luthier.store.database import Store
from luthier.store.runs import folder, list_runs

MOST_RUNS = 1000


def evaluated_texts(store: Store) -> dict[str, list[str]]:
    """Inputs of all recorded evaluations, each text once, by the name of the first run that has it (``eval NAME``)."""
    seen: set[str] = set()
    out: dict[str, list[str]] = {}
    for run in list_runs(store, kind="eval", limit=MOST_RUNS):
        for record in read_records(folder(store, run.id)):
            if record.input and record.input not in seen:
                seen.add(record.input)
                out.setdefault(f"eval {run.name}", []).append(record.input)
    return out


def held_out_texts(path: str | Path) -> list[str]:
    """What the examples of a file ask. Raises what ``read`` raises."""
    texts = []
    for example in read(path, skip_bad=True).examples:
        asked = [message.content for message in example.messages if message.role == "user"]
        texts.append(asked[-1] if asked else parts_of(example)["input"])
    return texts
