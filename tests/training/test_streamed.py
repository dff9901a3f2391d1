"""Rows on disk train the same weights as rows in memory, bit for bit, and memory does not grow with the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives import test_span_corruption as t5_with_sentinels

from luthier.core.catalog import load
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.run import no_progress
from luthier.core.task import PromptTemplate
from luthier.data.read import read
from luthier.data.stream import stream
from luthier.models.load import LoadedModel
from luthier.models.weights import read_tensors
from luthier.objectives._rows import Limits
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.store.runs import trained_on
from luthier.training import streamed
from luthier.training.resolve import resolve
from luthier.training.streamed import streamed_rows
from luthier.training.tune import TuneResult, tune

WORDS = [
    "the",
    "parcel",
    "came",
    "late",
    "and",
    "the",
    "box",
    "was",
    "open",
    "so",
    "I",
    "want",
    "the",
    "deposit",
    "back",
]


folder, model = t5_with_sentinels.folder, t5_with_sentinels.model


def _text(number: int) -> str:
    return " ".join(WORDS[(number * 7 + at) % len(WORDS)] for at in range(3 + number % 11)) + f" {number}"


def rows_of(kind: str, count: int = 40) -> list[dict[str, Any]]:
    if kind == "text":
        return [{"text": _text(i)} for i in range(count)]
    if kind == "labelled":
        return [{"text": _text(i), "label": "ab"[i % 2]} for i in range(count)]
    turns = [(_text(i), _text(i + 5)) for i in range(count)]
    return [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]} for ask, say in turns
    ]


def config(base: str, where: Path, kind: str, objective: Any, **changes: Any) -> dict[str, Any]:
    for name, count in (("train", 40), ("held", 8)):
        (where / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(kind, count)))
    data = {"train": str(where / "train.jsonl"), "validation": str(where / "held.jsonl")}
    train = {"max_steps": 4, "batch_size": 8, "max_tokens_per_batch": 256, "learning_rate": 1e-2}
    return {
        "name": "made",
        "model": base,
        "data": data | changes.pop("data", {}),
        "method": changes.pop("method", "full"),
        "objective": objective,
        "train": train | changes,
    }


def weights(result: TuneResult) -> dict[str, torch.Tensor]:
    place = path_of(open_store(), result.model.digest)
    return {k: v for file in sorted(place.rglob("*.safetensors")) for k, v in read_tensors(file).items()}


@pytest.mark.parametrize(
    ("base", "kind", "objective"),
    [
        ("tiny_decoder", "text", {"name": "causal_lm", "length": 24}),
        ("tiny_decoder", "chat", "sft"),
        ("tiny_decoder", "labelled", "classify"),
        ("tiny_encoder", "text", {"name": "masked_lm", "length": 16, "whole_word": True}),
        ("tiny_encoder", "labelled", "classify"),
        ("tiny_t5", "chat", "sft"),
    ],
)
def test_the_same_weights_as_from_memory(
    base: str, kind: str, objective: Any, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: Any
) -> None:
    monkeypatch.setattr(streamed, "_PIECE_ROWS", 7)
    name = request.getfixturevalue(base)
    plain = tune(config(name, tmp_path, kind, objective))
    first = weights(plain)
    on_disk = config(name, tmp_path, kind, objective, data={"streaming": True})
    key = resolve(on_disk, (), open_store()).key
    assert key == plain.run.key, "the same work"
    found = tune(on_disk, resume=False, replace=True)
    second = weights(found)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    same = ("rows", "tokens", "steps", "validation_loss", "best_step")
    assert [plain.summary[k] for k in same] == [found.summary[k] for k in same]
    assert trained_on(open_store(), found.run.id) == trained_on(open_store(), plain.run.id)


def test_rows_of_span_corruption_come_back_as_they_were(model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of("text")))
    entry, prompt, store = load("objectives", "span_corruption"), PromptTemplate(), open_store()
    options = entry.configure({"length": 16})
    plain = entry.module.prepare(read(path), model, prompt, options, Limits(512))
    found = streamed_rows(store, stream(store, path), model, entry, prompt, options, "error", no_progress).rows
    assert list(found) == plain
    assert list(found.lengths) == [row.length for row in plain]  # type: ignore[attr-defined]
    assert found[-3:] == plain[-3:]


def test_tokenised_once(tiny_decoder: str, tmp_path: Path, monkeypatch: Any) -> None:
    said: list[tuple[str, int, int]] = []
    on_disk = config(tiny_decoder, tmp_path, "chat", "sft", data={"streaming": True}, max_steps=1)
    monkeypatch.setattr(streamed, "_PIECE_ROWS", 16)
    tune(on_disk, progress=lambda *told: said.append(told))
    assert [told for told in said if told[0] == "tokenise"] == [
        ("tokenise", 16, 40), ("tokenise", 32, 40), ("tokenise", 40, 40), ("tokenise", 8, 8),
    ]  # fmt: skip
    from luthier.objectives import sft

    monkeypatch.setattr(sft, "prepare", lambda *_: pytest.fail("tokenised twice"))
    tune({**on_disk, "name": "other"})
    with pytest.raises(pytest.fail.Exception, match="tokenised twice"):
        tune({**on_disk, "name": "last", "objective": {"name": "sft", "turns": "last"}})


def test_nothing_half_tokenised_is_used(tiny_decoder: str, tmp_path: Path, monkeypatch: Any) -> None:
    from luthier.objectives import sft

    on_disk = config(tiny_decoder, tmp_path, "chat", "sft", data={"streaming": True}, max_steps=2)
    monkeypatch.setattr(streamed, "_PIECE_ROWS", 16)
    real, calls = sft.prepare, []

    def stops(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(sft, "prepare", stops)
        with pytest.raises(KeyboardInterrupt):
            tune(on_disk)
    store = open_store()
    assert len(list((store.home.root / "streams").iterdir())) == 2, "the two files as they were read, no tokens"
    assert not list(store.home.staging.iterdir())
    assert tune(on_disk).summary["rows"] == 40


def test_a_split_and_a_label_that_only_one_side_has(tiny_decoder: str, tmp_path: Path) -> None:
    values = config(tiny_decoder, tmp_path, "labelled", "classify", max_steps=1)
    values["data"] = {"path": str(tmp_path / "train.jsonl"), "streaming": True}
    done = tune(values).summary
    assert done["rows"] + round(40 * 0.2) == pytest.approx(40, abs=7)
    assert resolve(values, (), open_store()).splits.train.labels == ("a", "b")


@pytest.mark.parametrize(
    ("base", "kind", "method", "objective"), [("tiny_encoder", "labelled", "linear_probe", "classify")]
)
def test_features_and_other_objectives_need_memory(
    base: str, kind: str, method: str, objective: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = request.getfixturevalue(base)
    on_disk = config(name, tmp_path, kind, objective, data={"streaming": True}, method=method)
    with pytest.raises(UnsupportedError, match="features"):
        tune(on_disk)


def test_what_cannot_stream_says_so(tiny_decoder: str, tmp_path: Path) -> None:
    values = config(tiny_decoder, tmp_path, "chat", "sft", data={"streaming": True})
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    values["data"].pop("validation")
    with pytest.raises(UnsupportedError, match=r"dpo needs its data in memory.*causal_lm, classify"):
        resolve({**values, "objective": "dpo"}, (), open_store())
    with pytest.raises(InputError, match="several sources"):
        resolve({**values, "data": {"sources": [{"path": "x.jsonl"}], "streaming": True}}, (), open_store())


_PEAK = """
import sys
from luthier.objectives._rows import Limits
from luthier.training import streamed
from luthier.training.tune import tune

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024

base, path, name = sys.argv[1:]
streamed._PIECE_CHARACTERS = 50_000
seen = []
tune({"name": name, "model": base, "data": {"train": path, "streaming": True}, "method": "lora", "objective": {"name": "causal_lm", "length": 128},
      "train": {"max_steps": 1, "device": "cpu", "dtype": "fp32"}}, progress=lambda *told: seen.append(peak()))
print(max(*seen, peak()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_the_peak_does_not_grow_with_the_file(tiny_decoder: str, tmp_path: Path) -> None:
    peaks = []
    for count in (100, 400):
        path = tmp_path / f"rows-{count}.jsonl"
        with path.open("w") as file:
            for number in range(count):
                file.write(json.dumps({"text": (_text(number) + " ") * 100}) + "\n")
        command = [sys.executable, "-c", _PEAK, tiny_decoder, str(path), f"big-{count}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
        peaks.append(int(done.stdout.split()[-1]))
    assert (tmp_path / "rows-400.jsonl").stat().st_size > 1.5e6, "in memory its tokens alone would take 40 MB more"
    assert peaks[1] - peaks[0] < 12, peaks
