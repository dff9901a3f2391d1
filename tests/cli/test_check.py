"""``luthier check``: what is found is told, and the exit code says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from luthier.store.database import open_store
from luthier.store.runs import record_trained_on, start

LONG = "the quick brown fox jumps over the lazy dog while seven grey geese look on"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["check", *arguments])
    return int(ended.value.code or 0)


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(home: Path, tmp_path: Path) -> dict[str, str]:
    test = [
        {"text": f"{LONG} number {i}" if i < 3 else f"row {i} of words nobody else uses here now", "label": "ab"[i % 2]}
        for i in range(12)
    ]
    train = [{"text": f"Once {LONG.upper()}, they said.", "label": "a"}, {"text": test[5]["text"], "label": "a"}]
    task = tmp_path / "task.yaml"
    task.write_text("data: {train: train.jsonl, test: test.jsonl}\nscorers: [accuracy]\n")
    other = write(
        tmp_path / "other.jsonl", {"text": "quite another thing", "label": "a"}, {"text": "and more", "label": "b"}
    )
    return {
        "test": write(tmp_path / "test.jsonl", *test),
        "train": write(tmp_path / "train.jsonl", *train, {"text": "something else", "label": "b"}),
        "other": other,
        "task": str(task),
    }  # fmt: skip


def test_contamination(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("contamination", files["test"], "--train", files["train"]) == 1
    said = capsys.readouterr().out
    assert "4 of 12 examples" in said and "(33.3%)" in said and f"{files['train']}:1" in said and LONG in said
    assert run("contamination", files["test"], "--train", files["other"]) == 0
    assert "clean" in capsys.readouterr().out
    assert run("contamination", files["task"], "--train", files["train"], "--split", "test", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [o["index"] for o in found["contaminated"]] == [0, 1, 2, 5] and found["share"] == pytest.approx(1 / 3)


def test_contamination_says_what_it_needs(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("contamination", files["test"]) == 2
    assert "--train FILE" in capsys.readouterr().err
    assert run("contamination", files["test"], "--train", "nothing.jsonl") == 2
    assert run("contamination", files["test"], "--train", files["train"], "--min-k") == 2
    assert run("contamination", files["test"], "--model", "openai:x@http://h/v1") == 2
    assert run("contamination", files["test"], "--train", files["train"], "--n", "1") == 2


def test_scores_with_and_without_and_likely_texts(
    files: dict[str, str], tiny_decoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from luthier.evaluation.evaluate import evaluate

    done = evaluate("fake:a,b", files["task"])
    assert run("contamination", files["task"], "--train", files["train"], "--run", done.run.id) == 1
    said = capsys.readouterr().out
    assert "contaminated (4)" in said and "clean (8)" in said and "difference" in said
    assert run("contamination", files["other"], "--train", files["train"], "--run", done.run.id) == 2
    assert "asked other examples" in capsys.readouterr().err
    asked = ["--min-k", "--model", tiny_decoder, "--non-members", files["other"]]
    assert run("contamination", files["test"], "--train", files["train"], *asked) == 1
    said = capsys.readouterr()
    assert "AUC test against non-members" in said.out and "no record of examples" in said.err


def test_what_a_model_was_tuned_on_here(files: dict[str, str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.core.model import ModelRecord
    from luthier.data.read import read
    from luthier.store.models import register

    store = open_store()
    tuned = start(store, "tune", "t", {"data": {"path": files["train"]}}, {})
    rows = [*read(files["test"]).examples[:2], *read(files["train"]).examples[1:2]]
    record_trained_on(store, tuned.id, [e.id for e in rows])
    register(store, ModelRecord("tuned", "adapter", "encoder", "1" * 64, run_id=tuned.id))
    assert run("contamination", files["test"], "--model", "tuned") == 1
    said = capsys.readouterr().out
    assert "2 were trained on, by the store's own record" in said
    assert "3 of 12 examples" in said, (
        "one more has the text of a row of the file that it was tuned on, under another label"
    )


def test_leakage(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("leakage", files["train"], files["test"]) == 1
    said = capsys.readouterr().out
    assert "train → test" in said and "found" in said
    assert f"exact: {files['test']}:6 repeats {files['train']}:2" in said and "a there, b here" in said
    assert run("leakage", files["task"], "--json") == 1
    assert sum(p["counts"]["exact"] for p in json.loads(capsys.readouterr().out)["pairs"]) == 1
    assert run("leakage", files["test"], files["other"]) == 0
    assert run("leakage", files["test"]) == 2
    assert "one file" in capsys.readouterr().err
    assert run("leakage", files["train"], files["test"], "--group", "nothing") == 2


def test_parity(tiny_decoder: str, tiny_encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("parity", tiny_decoder, "--against", "torch", "--n", "2", "--tokens", "2") == 0
    said = capsys.readouterr().out
    assert "loss mask" in said and "agrees" in said
    assert run("parity", tiny_decoder, "--against", "llamacpp:F32", "--n", "2", "--tokens", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["agrees"] is True
    assert run("parity", tiny_encoder) == 2
    assert run("parity", tiny_decoder, "--against", "onnx") == 2


def test_parity_that_differs_exits_with_1(
    tiny_decoder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from luthier.engines._llamacpp_probe import LlamaProbe

    monkeypatch.setattr(LlamaProbe, "ends_answer", lambda self, before, tokens: frozenset())
    assert run("parity", tiny_decoder, "--against", "llamacpp:F32", "--n", "1", "--tokens", "1") == 1
    assert "answers do not end at 2 '<|im_end|>'" in capsys.readouterr().out


def test_judge(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = {"response_a": "a good answer", "response_b": "a poor one", "winner": "response_a"}
    data = write(tmp_path / "pairs.jsonl", *({"prompt": f"question {i}", **pair} for i in range(12)))
    log, picture = tmp_path / "log.jsonl", tmp_path / "judge.png"
    more = ["--log", str(log), "--picture", str(picture)]
    assert run("judge", "fake:A", "--data", data, *more) == 1, "it always takes the first"
    said = capsys.readouterr().out
    assert "against it:" in said and "shown first" in said and "Cohen's kappa" in said
    assert len(log.read_text().splitlines()) == 24 and picture.stat().st_size > 1000
    assert run("judge", "fake:A", "--data", data, "--limit", "3", "--json") == 1
    assert json.loads(capsys.readouterr().out)["pairs"] == 3
    assert run("judge", "fake:purple", "--data", data, "--retries", "0") == 7
    assert "could be read" in capsys.readouterr().err
    assert run("judge", "fake:A", "--data", data, "--mode", "shout") == 2
    broken = write(tmp_path / "broken.jsonl", {"prompt": "only"})
    assert run("judge", "fake:A", "--data", broken) == 2
    assert "response_a is missing" in capsys.readouterr().err
