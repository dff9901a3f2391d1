"""Plain documents through the whole verb: which objective follows, what it leaves in the store, and what starts from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import InputError, UnsupportedError
from luthier.models.load import load_model
from luthier.models.pull import pull
from luthier.models.weights import read_tensors
from luthier.store import runs
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.store.models import find
from luthier.training.interrupt import Halt
from luthier.training.tune import TuneResult, tune

WORDS = ["parcel", "courier", "violin", "deposit", "refund", "lesson", "teacher", "account", "code", "invoice"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    texts = [" ".join(WORDS[(i * k + k) % 10] for k in range(1, 6 + 5 * (i % 4))) + f" {i}." for i in range(24)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text, "source": "made"}) + "\n" for text in texts))
    return path


def settings(base: str, data: Path, **more: Any) -> dict[str, Any]:
    train = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "dtype": "fp32", "device": "cpu"}
    return {"model": base, "data": {"path": str(data)}, "method": "lora", "train": train} | more


def curve(result: TuneResult) -> list[float]:
    records = runs.read_metrics(runs.folder(open_store(), result.run.id) / runs.METRICS)
    return [r["validation_loss"] for r in records if "validation_loss" in r]


def tensors(result: TuneResult) -> Mapping[str, torch.Tensor]:
    folder = path_of(open_store(), result.model.digest)
    return {f"{p.name}/{k}": v for p in folder.glob("*.safetensors") for k, v in read_tensors(p).items()}


def test_decoders_learn_to_write_documents(tiny_decoder: str, corpus: Path) -> None:
    result = tune(settings(tiny_decoder, corpus))
    assert result.model.meta["objective"] == "causal_lm" and result.model.meta["prompt"] is None
    assert len(curve(result)) == 3 and curve(result)[-1] < curve(result)[0]
    assert load_model(open_store(), result.model.name).context_length == 512
    with pytest.raises(InputError, match="text rows are trained on as they are"):
        tune(settings(tiny_decoder, corpus, prompt={"instruction": "Write"}))
    with pytest.raises(UnsupportedError, match="infill needs special tokens"):
        tune(settings(tiny_decoder, corpus, objective="infill", name="other"))
    named = {"name": "infill", "prefix": "<|im_start|>", "suffix": "<|im_end|>", "middle": "<|endoftext|>", "end": "!"}
    assert tune(settings(tiny_decoder, corpus, objective=named, name="infill")).model.meta["objective"] == "infill"


@pytest.mark.parametrize("method", ["lora", "full", "prefix", "layer_norm"])
@pytest.mark.parametrize("base", ["tiny_decoder", "tiny_encoder"])
def test_the_same_seed_gives_the_same_weights_also_when_resumed(
    base: str,
    method: str,
    corpus: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    name = request.getfixturevalue(base)
    train = {"epochs": 2, "batch_size": 4, "dtype": "fp32", "device": "cpu", "checkpoint_every": 1}
    objective = {"name": "causal_lm", "length": 64} if base == "tiny_decoder" else "masked_lm"
    told = settings(name, corpus, method=method, train=train, name="result", objective=objective)
    straight = tensors(tune(told))
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "again"))
    pull(f"file:{request.getfixturevalue(base + '_path')}", alias=name)

    def stop(record: Mapping[str, Any]) -> None:
        if record["step"] == 3:
            raise Halt("enough")

    with pytest.raises(Halt):
        tune(told, metrics=stop)
    resumed = tensors(tune(told))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_encoders_learn_words_and_then_something_else(tiny_encoder: str, corpus: Path, tmp_path: Path) -> None:
    first = tune(settings(tiny_encoder, corpus, name="first"))
    assert first.model.meta["objective"] == "masked_lm"
    assert {"validation_loss", "validation_accuracy"} <= first.summary.keys()
    assert curve(first)[-1] < curve(first)[0]
    head = {k: v for k, v in tensors(first).items() if k.startswith("lm_head")}
    assert len(head) == 5
    frozen = tune(settings("first", corpus, name="second", train={"max_steps": 1, "dtype": "fp32", "device": "cpu"}))
    again = {k: v for k, v in tensors(frozen).items() if k.startswith("lm_head")}
    assert head.keys() == again.keys() and all(torch.equal(head[k], again[k]) for k in head)  # found, and not new
    labelled = tmp_path / "labelled.jsonl"
    rows = [{"text": f"{w} {i}", "label": "a" if n < 5 else "b"} for n, w in enumerate(WORDS) for i in range(3)]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sorter = tune(settings("first", labelled, name="sorter"))
    assert sorter.model.meta["objective"] == "classify" and sorter.model.base == "first"
    assert not any(k.startswith("lm_head") for k in tensors(sorter))
    assert load_model(open_store(), "sorter").labels == ("a", "b")
    body, base = (load_model(open_store(), n, dtype="fp32", device="cpu").module for n in ("first", tiny_encoder))
    ids = torch.tensor([[2, 30, 40, 3]])
    with torch.no_grad():
        one, other = (m.body(ids).last_hidden_state for m in (body, base))
    assert not torch.allclose(one, other, atol=1e-3)  # the encoder itself has learnt
    assert find(open_store(), "first").meta["labels"] == []


def test_encoder_decoders_learn_spans(tiny_t5: str, tiny_t5_path: Path, corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    with pytest.raises(UnsupportedError, match="span_corruption needs sentinel tokens"):
        tune(settings(tiny_t5, corpus))
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_t5_path))
    tokenizer.add_tokens([f"<extra_id_{i}>" for i in range(20)], special_tokens=True)
    torch.manual_seed(0)
    module = T5ForConditionalGeneration.from_pretrained(str(tiny_t5_path))
    module.resize_token_embeddings(len(tokenizer))
    module.save_pretrained(str(tmp_path / "t5"))
    tokenizer.save_pretrained(str(tmp_path / "t5"))
    pull(f"file:{tmp_path / 't5'}", alias="t5-spans")
    result = tune(settings("t5-spans", corpus))
    assert result.model.meta["objective"] == "span_corruption"
    assert curve(result)[-1] < curve(result)[0]


def test_an_encoder_probe_has_nothing_to_probe(tiny_encoder: str, corpus: Path) -> None:
    with pytest.raises(UnsupportedError, match="linear_probe trains a head alone"):
        tune(settings(tiny_encoder, corpus, method="linear_probe"))
