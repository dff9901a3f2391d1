"""Continual tuning on tiny models: what each step trains on and leaves behind, what is scored, and that an interrupted stream goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tournament.test_stream import MORE
from tests.training.test_tune import write_tickets

from luthier.core.errors import ConflictError
from luthier.evaluation.evaluate import evaluate
from luthier.evaluation.forgetting import forgetting
from luthier.models.load import load_model
from luthier.models.weights import read_tensors
from luthier.store import runs
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.store.lineage import lineage
from luthier.store.models import find
from luthier.tournament.continual import PICTURE, REPORT, Continual, Step, continual
from luthier.tournament.stream import read_stream


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write_tickets(tmp_path / "autumn.jsonl", 20), write_tickets(tmp_path / "winter.jsonl", 20, MORE)


def told(base: str, files: tuple[Path, Path], **more: Any) -> dict[str, Any]:
    return {
        "name": "support",
        "model": base,
        "stream": [str(each) for each in files],
        "method": {"name": "lora", "rank": 4},
        "replay": 0.25,
        "train": {"epochs": 2, "batch_size": 8, "dtype": "fp32", "device": "cpu", "learning_rate": 1e-2},
        **more,
    }


def weights(name: str) -> dict[str, torch.Tensor]:
    folder = path_of(open_store(), find(open_store(), name).digest)
    return {f"{p.name}/{k}": v for p in folder.glob("*.safetensors") for k, v in read_tensors(p).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_stream_of_two(tiny_encoder: str, files: tuple[Path, Path]) -> None:
    seen: list[Step] = []
    config = told(tiny_encoder, files)
    found = continual(config, stepped=seen.append)
    store, stream = open_store(), read_stream(config)
    assert [step.task for step in found.steps] == ["autumn", "winter"] and seen == list(found.steps)
    assert [len(row) for row in found.scores] == [1, 2] and found.primary == "macro_f1"
    rows = [len(task.splits.train) for task in stream.tasks]
    assert [(s.rows, s.replayed) for s in found.steps] == [(rows[0], 0), (rows[1], round(rows[1] / 3))]
    first, second = (find(store, f"support-{name}") for name in ("1-autumn", "2-winter"))
    assert (first.base, second.base) == (tiny_encoder, first.name)
    assert first.meta["labels"] == ["billing", "delivery"]
    assert second.meta["labels"] == ["billing", "delivery", "lessons"]  # old ones first, all known by then
    by_hand = evaluate(second.name, stream.asked(0, 1), store=store)
    assert by_hand.score == found.scores[1][0] and by_hand.run.id == found.steps[1].cells[0].run
    assert found.figures == forgetting(found.scores)
    folder = runs.folder(store, found.run)
    assert json.loads((folder / REPORT).read_text()) == json.loads(json.dumps(found.as_dict()))
    assert (folder / PICTURE).read_bytes()[:4] == b"\x89PNG"
    assert runs.find_run(store, found.run).summary["scores"] == found.scores
    trained = runs.trained_on(store, found.steps[1].run)
    own = {e.id for e in stream.tasks[1].splits.train.examples}
    assert trained - own < {e.id for e in stream.tasks[0].splits.train.examples}
    assert own < trained and len(trained - own) == found.steps[1].replayed > 0
    held = {e.id for task in stream.tasks for e in task.splits.test.examples}
    assert not trained & held
    edges = {(edge.source.label or edge.source.id, edge.relation) for edge in lineage(second.name, store).edges}
    assert ("autumn/train", "replayed in") in edges and ("support-1-autumn", "base") in edges


def test_labels_that_are_known_keep_their_head(tiny_encoder: str, files: tuple[Path, Path]) -> None:
    found = continual(told(tiny_encoder, files))
    store, name = open_store(), found.steps[0].model
    before = load_model(store, name, dtype="fp32", device="cpu")
    grown = load_model(store, name, dtype="fp32", device="cpu", labels=("lessons", "delivery", "billing"))
    assert grown.labels == ("lessons", "delivery", "billing")
    for place, label in ((1, "delivery"), (2, "billing")):
        old = before.labels.index(label)
        assert torch.equal(grown.module.head.weight[place], before.module.head.weight[old])
        assert torch.equal(grown.module.head.bias[place], before.module.head.bias[old])
    assert not any(torch.equal(grown.module.head.weight[0], row) for row in before.module.head.weight)


def test_done_work_is_found_and_other_work_refused(tiny_encoder: str, files: tuple[Path, Path]) -> None:
    first = continual(told(tiny_encoder, files))
    count = len(runs.list_runs(open_store(), limit=100))
    again = continual(told(tiny_encoder, files))
    assert again == first and len(runs.list_runs(open_store(), limit=100)) == count
    with pytest.raises(ConflictError, match="'support-2-winter' is taken"):
        continual(told(tiny_encoder, files), ["replay=0"])
    other = continual(told(tiny_encoder, files), ["replay=0"], replace=True)
    assert [step.replayed for step in other.steps] == [0, 0] and other.run != first.run
    assert other.steps[1].rows == first.steps[1].rows and other.steps[1].run != first.steps[1].run


@pytest.mark.parametrize("stage", ["2/2 winter: train", "2/2 winter: score autumn"])
def test_interrupted_it_goes_on(tiny_encoder: str, files: tuple[Path, Path], stage: str) -> None:
    whole = continual(told(tiny_encoder, files, name="whole"))

    def stop(name: str, done: int, total: int) -> None:
        if name == stage and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        continual(told(tiny_encoder, files), progress=stop)
    store = open_store()
    (run,) = [run for run in runs.list_runs(store, "continual") if run.name == "support"]
    assert run.status == "interrupted"
    partial = json.loads((runs.folder(store, run.id) / REPORT).read_text())
    assert len(partial["steps"]) == 1  # what was finished is told already
    kept = find(store, "support-1-autumn").created_at
    found = continual(told(tiny_encoder, files))
    assert found.run == run.id and runs.find_run(store, run.id).status == "done"
    assert find(store, "support-1-autumn").created_at == kept
    assert found.scores == whole.scores
    assert equal(weights("support-2-winter"), weights("whole-2-winter"))


def test_a_decoder_is_asked_among_all_labels(tiny_decoder: str, files: tuple[Path, Path]) -> None:
    found: Continual = continual(told(tiny_decoder, files, train={"epochs": 1, "dtype": "fp32", "device": "cpu"}))
    prompt = find(open_store(), found.model).meta["prompt"]
    assert list(prompt["labels"]) == ["billing", "delivery", "lessons"]
    assert len(found.scores[1]) == 2


def test_plain_text(tiny_decoder: str, tmp_path: Path) -> None:
    """Two domains; bits per byte, of which less is better."""
    paths = []
    for name in ("news", "tales"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": f"{name} of {i} parcels and a courier"}) + "\n" for i in range(16)))
        paths.append(path)
    train = {"epochs": 1, "dtype": "fp32", "device": "cpu"}
    found = continual(told(tiny_decoder, (paths[0], paths[1]), train=train))
    assert found.lower_is_better and found.primary == "bits_per_byte" and found.figures.forgetting is not None
    assert found.figures == forgetting(found.scores, lower_is_better=True)
