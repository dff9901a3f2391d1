from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from luthier.core.engine import Sampling
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import Message
from luthier.store.database import open_store
from luthier.store.lineage import lineage
from luthier.store.models import find
from luthier.training.from_scratch import Advice, advice, defaults, is_new
from luthier.training.resolve import resolve
from luthier.training.tune import Start, tune

SAID = [
    "The parcel has not arrived and the courier is late",
    "Please refund the deposit for the violin",
    "My lesson is at",
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{SAID[n % 3]} {n}.\n\n" for n in range(150)))
    return path


def settings(corpus: Path, architecture: str = "llama", **more: Any) -> dict[str, Any]:
    shape = {"architecture": architecture, "layers": 1, "width": 32, "heads": 2, "context_length": 64}
    return {
        "model": {"new": {**shape, "tokenizer": {"train": {"vocabulary": 320}}, **more}},
        "data": {"path": str(corpus)},
        "train": {"max_steps": 6, "batch_size": 4, "dtype": "fp32", "learning_rate": 1e-2},
    }


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_from_one_file_of_text_to_a_trained_model(home: Path, corpus: Path, architecture: str) -> None:
    told: list[Start] = []
    result = tune(settings(corpus, architecture), started=told.append)
    store = open_store()
    base = find(store, str(result.model.base))
    assert is_new(base) and not is_new(result.model)
    assert result.model.meta["method"] == "full"
    assert result.model.meta["objective"] == ("masked_lm" if architecture == "bert" else "causal_lm")
    assert result.model.name.startswith(f"{architecture}-1x32-{base.meta['new']['key'][:6]}-full-corpus-")
    assert told[0].advice is not None and told[0].advice.parameters == base.meta["parameters"]
    assert result.summary["trainable_parameters"] <= base.meta["parameters"]
    again = tune(settings(corpus, architecture))
    assert again.reused and again.run.id == result.run.id
    other = tune(settings(corpus, architecture, seed=1))
    assert not other.reused and other.model.base != base.name
    sources = {(edge.source.kind, edge.relation) for edge in lineage(result.model.name, store=store).edges}
    assert {("dataset", "tokenizer of"), ("model", "base"), ("dataset", "train")} <= sources


def test_a_new_model_is_tuned_again_and_talks(home: Path, corpus: Path, tmp_path: Path) -> None:
    import luthier

    first = tune(settings(corpus) | {"name": "small"})
    chats = tmp_path / "chats.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}]}
        for n in range(12)
    ]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"max_steps": 3, "dtype": "fp32"}
    second = tune(
        {
            "model": "small",
            "data": {"path": str(chats)},
            "method": {"name": "lora", "rank": 2},
            "train": train,
            "name": "chatty",
        }
    )
    assert second.model.base == "small" and second.model.meta["objective"] == "sft"
    engine = luthier.load("chatty", engine="torch", options={"dtype": "fp32"})
    answer = engine.generate([(Message("user", "3?"),)], Sampling(max_new_tokens=4))[0]
    assert isinstance(answer.text, str)
    exported = luthier.export("small", type="F32")
    assert exported.kind == "export"
    assert first.model.digest == find(open_store(), "small").digest


def test_what_leaves_random_weights_is_refused(home: Path, corpus: Path) -> None:
    store = open_store()
    with pytest.raises(
        UnsupportedError, match=r"random weights, and method lora leaves most(.|\n)*train it first: method=full"
    ):
        resolve(settings(corpus) | {"method": "lora"}, (), store)
    job = resolve(settings(corpus), (), store)
    assert job.made and not resolve(settings(corpus), (), store).made
    with pytest.raises(UnsupportedError, match=f"{job.base.name} has random weights, and method bitfit"):
        resolve({**settings(corpus), "model": job.base.name, "method": "bitfit"}, (), store)
    with pytest.raises(InputError, match=r"model: give either base .* or new"):
        resolve(settings(corpus), ["model.base=x"], store)
    with pytest.raises(InputError, match="model: give either base"):
        resolve({**settings(corpus), "model": {}, "method": "full"}, (), store)
    with pytest.raises(InputError, match="method is required"):
        resolve({"model": "x", "data": {"path": str(corpus)}}, (), store)
    with pytest.raises(InputError, match=r"model\.new\.vocabulary|vocabulary must be at least the tokenizer's"):
        resolve(settings(corpus, vocabulary=100), (), store)


def test_defaults_follow_the_size(home: Path, corpus: Path) -> None:
    store = open_store()
    raw = settings(corpus)
    del raw["train"]["learning_rate"]
    job = resolve(raw, (), store)
    size = job.base.meta["without_embeddings"]
    assert math.isclose(job.config.train.learning_rate, 0.003239 - 0.0001395 * math.log(size), rel_tol=0.05)
    assert job.origins["train.learning_rate"] == "default of a new model" and job.config.train.weight_decay == 0.1
    assert job.config.train.optimizer.options["beta2"] == 0.95
    assert resolve(raw, ["train.optimizer=adafactor"], store).config.train.optimizer.name == "adafactor"
    assert resolve(settings(corpus), (), store).config.train.learning_rate == 1e-2  # what is given stays
    trained = tune(settings(corpus) | {"name": "small"}).model
    assert defaults(trained) == {} and advice(trained, 10, 10) is None


def test_advice_in_plain_words() -> None:
    few = Advice(5_000_000, 4_000_000, 3_000_000, 1_000_000)
    assert (few.per_parameter, few.passes) == (0.6, 3.0)
    assert (
        "5M parameters (4M without embeddings) read 1M tokens 3 times: 0.6 tokens a parameter; about 20" in few.text()
    )
    assert "on about 866k parameters" in few.text()  # the root of 5M x 3M / 20
    assert "near the best" in Advice(1_000_000, 900_000, 20_000_000, 20_000_000).text()
    assert "a larger one" in Advice(1_000_000, 900_000, 100_000_000, 100_000_000).text()
    assert "Beyond 4 passes" in Advice(1_000_000, 900_000, 20_000_000, 2_000_000).text()
    assert "read 1k of the data's 5k tokens" in Advice(1_000, 900, 1_000, 5_000).text()
    assert few.as_dict()["tokens_per_parameter"] == 0.6


def test_the_plan_leaves_nothing_behind(
    home: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    from luthier.cli import main
    from luthier.store.models import list_models

    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings(corpus)))
    with pytest.raises(SystemExit) as ended:
        main(["tune", str(path), "--plan"])
    assert not ended.value.code and "tokens a parameter" in capsys.readouterr().out
    assert list_models(open_store()) == []
