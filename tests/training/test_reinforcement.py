"""Reinforcement by the whole verb: rewards rise, a cut run goes on bit-equal, and what is kept is a language model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from luthier.core.errors import DataError, MismatchError, UnsupportedError
from luthier.core.message import Message, user
from luthier.models.load import load_model
from luthier.models.reward import rewards
from luthier.models.weights import read_tensors
from luthier.store import runs
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.store.lineage import lineage
from luthier.store.models import find
from luthier.training.interrupt import Halt
from luthier.training.resolve import Job, resolve
from luthier.training.tune import TuneResult, tune

DIGITS = [{"name": "regex", "pattern": "[0-9]", "expect": "match"}]


def write_prompts(path: Path, count: int = 32) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"number {i}?"}, {"role": "assistant", "content": f"it is {i}"}]}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(base: str, data: Path, objective: Mapping[str, Any], method: Any = "full", **train: Any) -> dict[str, Any]:
    return {
        "model": base,
        "data": {"train": str(data)},
        "method": method,
        "objective": {"max_new_tokens": 6, **objective},
        "train": {"epochs": 20, "batch_size": 32, "dtype": "fp32", "device": "cpu", "schedule": "constant", **train},
    }


def tensors(result: TuneResult) -> dict[str, torch.Tensor]:
    folder = path_of(open_store(), result.model.digest)
    return {f"{p.name}/{k}": v for p in folder.glob("*.safetensors") for k, v in read_tensors(p).items()}


@pytest.mark.parametrize(
    ("objective", "rate", "steps"),
    [({"name": "ppo", "epochs": 2}, 1e-2, 12), ({"name": "nash_md", "beta": 0.02}, 2e-2, 20)],
    ids=["ppo", "nash_md"],
)
def test_the_reward_rises(
    tiny_decoder: str, tmp_path: Path, objective: dict[str, Any], rate: float, steps: int
) -> None:
    """The share of answers with a digit in them."""
    records: list[Mapping[str, Any]] = []
    config = settings(
        tiny_decoder,
        write_prompts(tmp_path / "prompts.jsonl"),
        {**objective, "rewards": DIGITS},
        learning_rate=rate,
        max_steps=steps,
    )
    tune(config, metrics=records.append)
    shares = [record["reward"] for record in records]
    assert sum(shares[-3:]) / 3 > sum(shares[:3]) / 3 + 0.3, shares
    assert records[-1]["kl"] > records[0]["kl"] and abs(records[0]["kl"]) < 1e-4
    assert {"entropy", "truncated", "answer_tokens", "tokens_per_s", "grad_norm"} <= records[0].keys()


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "ppo", "epochs": 2, "minibatches": 2, "kl_target": 0.5, "entropy_coefficient": 0.01},
        {"name": "nash_md"},
    ],
    ids=["ppo", "nash_md"],
)
def test_a_run_that_is_cut_goes_on_bit_equal(tiny_decoder: str, tmp_path: Path, objective: dict[str, Any]) -> None:
    data = write_prompts(tmp_path / "prompts.jsonl", 12)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"The courier called {i} times."}) + "\n" for i in range(4)))
    further = {"ptx": {"path": str(texts), "length": 16}} if objective["name"] == "ppo" else {}
    config = settings(
        tiny_decoder,
        data,
        {**objective, **further, "rewards": DIGITS},
        {"name": "lora", "dropout": 0.1},
        batch_size=4,
        max_steps=5,
        checkpoint_every=1,
        learning_rate=5e-3,
    )
    whole: list[Mapping[str, Any]] = []
    wanted = tune({**config, "name": "whole"}, metrics=whole.append)

    def cut(record: Mapping[str, Any]) -> None:
        if record["step"] == 3:
            raise Halt("enough")

    with pytest.raises(Halt):
        tune({**config, "name": "cut"}, metrics=cut)
    rest: list[Mapping[str, Any]] = []
    found = tune({**config, "name": "cut"}, metrics=rest.append)
    assert [record["step"] for record in rest] == [3, 4, 5]
    one, other = tensors(wanted), tensors(found)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    for name in ("loss", "reward", "kl", "entropy", "tokens"):
        assert [record[name] for record in whole[2:]] == [record[name] for record in rest]


def write_pairs(path: Path) -> Path:
    rows = [{"prompt": f"number {i}?", "chosen": f"it is number {i}, surely", "rejected": "no idea"} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("judge", ["tiny_decoder", "tiny_encoder"])
def test_three_steps_reward_then_ppo_leave_a_language_model(
    tiny_decoder: str, judge: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    base = request.getfixturevalue(judge)
    tune(
        settings(base, pairs, {}, "lora", max_steps=4) | {"name": "judge", "objective": "reward"},
    )
    records: list[Mapping[str, Any]] = []
    config = settings(
        tiny_decoder,
        pairs,
        {"name": "ppo", "reward": "judge", "epochs": 1},
        "lora",
        max_steps=2,
        batch_size=4,
    )
    config["data"]["validation"] = str(pairs)
    result = tune({**config, "name": "aligned"}, metrics=records.append)
    assert all(abs(record["reward"]) > 0 for record in records)
    assert "validation_reward" in records[-1] and "validation_reward" in result.summary
    record = find(open_store(), "aligned")
    assert "scores" not in record.meta and record.meta["objective"] == "ppo"
    names = {path.name for path in path_of(open_store(), record.digest).iterdir()}
    assert "head.safetensors" not in names
    model = load_model(open_store(), "aligned", dtype="fp32", device="cpu")
    assert model.head is None
    assert model.module(input_ids=torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 384)
    edges = {(e.source.id, e.relation, e.target.kind) for e in lineage("aligned", open_store()).edges}
    assert ("judge", "reward", "run") in edges
    folder = runs.folder(open_store(), result.run.id)
    assert (folder / "curve.png").stat().st_size > 1000


def test_a_reward_model_of_another_tokenizer(tiny_decoder: str, tiny_t5: str, tmp_path: Path) -> None:
    """One that reads tokens is refused before any work, as its tokens are others; an encoder reads the text."""
    from tests.conftest import _tokenizer
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from luthier.models.pull import pull

    folder = tmp_path / "other"
    folder.mkdir()
    _tokenizer(folder, chat=True)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.add_tokens(["parcel"])
    tokenizer.save_pretrained(str(folder))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(str(folder))
    other = pull(f"file:{folder}", alias="other").name
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    tune(settings(other, pairs, {}, "lora", max_steps=1) | {"name": "judge", "objective": "reward"})
    with pytest.raises(MismatchError, match=r"the reward model judge has another tokenizer than tiny-decoder"):
        tune(settings(tiny_decoder, pairs, {"name": "ppo", "reward": "judge"}))


def test_what_an_encoder_cannot_read_is_said_before_training(
    tiny_decoder: str, tiny_encoder: str, tmp_path: Path
) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    tune(settings(tiny_encoder, pairs, {}, "lora", max_steps=1) | {"name": "judge", "objective": "reward"})
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"messages": [{"role": "user", "content": "refund " * 130}]}) + "\n")
    rows = json.dumps(
        {"messages": [{"role": "user", "content": "refund " * 30}, {"role": "assistant", "content": "a"}]}
    )
    long.write_text(rows + "\n" + rows.replace("refund ", "refund refund refund refund refund ") + "\n")
    with pytest.raises(DataError, match=r"1 prompts leave the reward model judge no room .*long.jsonl:2"):
        tune(settings(tiny_decoder, long, {"name": "nash_md", "reward": "judge"}, max_steps=1))
    judge = load_model(open_store(), "judge", dtype="fp32", device="cpu")
    talk = (*user("refund"), Message("assistant", "refund " * 400))
    assert rewards(judge, [talk], cut=True) == rewards(
        judge, [(talk[0], Message("assistant", "refund " * 500))], cut=True
    )


def test_the_text_beside_the_answers_counts_in_the_key(tiny_decoder: str, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    config = settings(
        tiny_decoder,
        write_prompts(tmp_path / "prompts.jsonl", 4),
        {"name": "ppo", "rewards": DIGITS, "ptx": {"path": str(texts)}},
    )

    def job(text: str) -> Job:
        texts.write_text(json.dumps({"text": text}) + "\n")
        return resolve(config, (), open_store())

    first, other = job("The courier called."), job("The courier never called.")
    assert first.key == job("The courier called.").key != other.key
    assert first.config.train.metric == "validation_reward"
    assert first.config.train.learning_rate == pytest.approx(5e-5 * 0.05)


@pytest.mark.parametrize("name", ["ppo", "nash_md", "grpo", "best_of_n"])
def test_validation_rows_that_no_scorer_can_compare_are_named_before_training(
    tiny_decoder: str, tmp_path: Path, name: str
) -> None:
    bare = tmp_path / "bare.jsonl"
    turns = [{"role": role, "content": "number 1?"} for role in ("user", "assistant", "user")]
    bare.write_text(json.dumps({"messages": turns}) + "\n")
    config = settings(tiny_decoder, write_prompts(tmp_path / "prompts.jsonl", 4), {"name": name, "rewards": ["exact"]})
    config["data"]["validation"] = str(bare)
    steps: list[Any] = []
    with pytest.raises(DataError, match=r"bare.jsonl:1: exact compares with a right answer"):
        tune(config, metrics=steps.append)
    assert not steps


def test_the_text_beside_the_answers_is_seen_from_the_yaml(
    tiny_decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the command runs, and wherever the files are moved together: equal work."""
    jobs = []
    for name in ("here", "there"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "texts.jsonl").write_text(json.dumps({"text": "The courier called."}) + "\n")
        write_prompts(folder / "prompts.jsonl", 4)
        objective = {"name": "ppo", "rewards": DIGITS, "ptx": {"path": "texts.jsonl"}}
        run = settings(tiny_decoder, Path("prompts.jsonl"), objective)
        (folder / "run.yaml").write_text(yaml.safe_dump(run))
        jobs.append(resolve(folder / "run.yaml", (), open_store()))
        assert jobs[-1].values()["objective"]["ptx"]["path"] == str(folder / "texts.jsonl")
    assert jobs[0].key == jobs[1].key
    monkeypatch.chdir(tmp_path / "here")
    assert resolve("run.yaml", (), open_store()).key == jobs[0].key
    with pytest.raises(DataError, match=r"here/none.jsonl"):
        resolve(tmp_path / "here" / "run.yaml", ["objective.ptx.path=none.jsonl"], open_store())


def test_an_encoder_cannot_answer(tiny_encoder: str, tmp_path: Path) -> None:
    data = write_prompts(tmp_path / "prompts.jsonl", 4)
    for name in ("ppo", "nash_md"):
        with pytest.raises(UnsupportedError, match=f"objective {name} samples answers from a decoder"):
            tune(settings(tiny_encoder, data, {"name": name, "rewards": DIGITS}, "lora"))
