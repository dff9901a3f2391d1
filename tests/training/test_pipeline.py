"""Pipelines: several trainings in one YAML, checked before the first, gone on with where they were."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.objectives.preferences import PAIRS

from luthier.cli import main
from luthier.core.errors import ConflictError, DataError, InputError, LuthierError, NotFoundError, UnsupportedError
from luthier.store.database import open_store
from luthier.store.lineage import lineage
from luthier.store.models import find, list_models
from luthier.store.runs import list_runs
from luthier.training.pipeline import is_pipeline, pipeline, plan, read_steps
from luthier.training.tune import tune

TRAIN = {"max_steps": 2, "batch_size": 2, "dtype": "fp32", "device": "cpu"}


PPO = {
    "model": "steps.sft",
    "data": {"train": "questions.jsonl"},
    "objective": {"name": "ppo", "reward": "steps.reward", "max_new_tokens": 4, "epochs": 1},
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Chats, pairs and questions of a few rows."""
    chats = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a, _ in PAIRS]
    pairs = [{"prompt": q, "chosen": a, "rejected": b} for q, a, b in PAIRS]
    questions = [{"question": q, "answer": a} for q, a, _ in PAIRS]
    for name, rows in (("chats", chats), ("pairs", pairs), ("questions", questions)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def three(base: str, **steps: Any) -> dict[str, Any]:
    """sft, then a reward model, then grpo with it; ``steps`` change sections of single ones."""
    values: dict[str, Any] = {
        "name": "desk",
        "model": base,
        "method": {"name": "lora", "rank": 2},
        "train": TRAIN,
        "steps": {
            "sft": {"data": {"train": "chats.jsonl"}, "objective": "sft"},
            "reward": {"model": "steps.sft", "data": {"train": "pairs.jsonl"}, "objective": "reward"},
            "policy": {
                "model": {"base": "steps.sft"},
                "data": {"train": "questions.jsonl"},
                "objective": {
                    "name": "grpo",
                    "rewards": [{"model": "steps.reward"}],
                    "group_size": 2,
                    "max_new_tokens": 4,
                    "beta": 0.0,
                },
            },
        },
    }
    for name, changes in steps.items():
        values["steps"][name] = {**values["steps"].get(name, {}), **changes}
    return values


def write(folder: Path, values: Mapping[str, Any]) -> Path:
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False), encoding="utf-8")
    return path


def test_three_steps_each_on_what_came_before(tiny_decoder: str, files: Path) -> None:
    path = write(files, three(tiny_decoder))
    told: list[tuple[str, int, int]] = []
    done = pipeline(path, stepping=lambda *at: told.append(at))
    assert told == [("sft", 1, 3), ("reward", 2, 3), ("policy", 3, 3)]
    assert [step.result.model.name for step in done.steps] == ["desk-sft", "desk-reward", "desk-policy"]
    assert (done["reward"].model.base, done.model.base) == ("desk-sft", "desk-sft")
    assert done["reward"].model.meta["scores"] and is_pipeline(path)
    edges = {(e.source.id, e.relation, e.target.label) for e in lineage("desk-policy").edges}
    assert ("desk-sft", "base", "desk-policy") in edges
    assert any(source == "desk-reward" and target == "desk-policy" for source, _, target in edges)
    assert len(list_runs(open_store())) == 3
    again = pipeline(path)
    assert all(step.result.reused for step in again.steps) and len(list_runs(open_store())) == 3


def test_the_three_steps_of_instruct_gpt(tiny_decoder: str, files: Path) -> None:
    done = pipeline(write(files, three(tiny_decoder, policy=PPO)))
    assert done.model.meta["objective"] == "ppo" and not done.model.meta.get("scores")
    assert ("desk-reward", "desk-policy") in {(e.source.id, e.target.label) for e in lineage("desk-policy").edges}


def test_each_result_is_that_of_a_run_of_its_own(tiny_decoder: str, files: Path) -> None:
    done = pipeline(write(files, three(tiny_decoder)))
    alone = {
        "name": "alone",
        "model": "desk-sft",
        "method": {"name": "lora", "rank": 2},
        "train": TRAIN,
        "data": {"train": str(files / "pairs.jsonl")},
        "objective": "reward",
    }
    assert tune(alone).summary["steps"] == 2
    from luthier.models.load import load_model

    one, other = (
        load_model(open_store(), name, dtype="fp32", device="cpu").head.weight for name in ("alone", "desk-reward")
    )
    assert one.equal(other) and done["reward"].model.meta["labels"] == []


class Stopped(Exception):
    """Raised by a sink to end a training in the middle."""


def test_a_killed_pipeline_goes_on_at_its_step_and_checkpoint(tiny_decoder: str, files: Path) -> None:
    values = three(tiny_decoder)
    values["train"] = {**TRAIN, "max_steps": 4, "checkpoint_every": 1, "epochs": 9}
    path = write(files, values)
    seen: list[Mapping[str, Any]] = []

    def stop(record: Mapping[str, Any]) -> None:
        seen.append(record)
        if len(seen) == 4 + 3:  # in the third step of "reward"
            raise Stopped

    with pytest.raises(Stopped):
        pipeline(path, metrics=stop)
    assert [model.name for model in list_models(open_store(), "adapter")] == ["desk-sft"]
    rest: list[int] = []
    done = pipeline(path, metrics=lambda record: rest.append(record["step"]))
    assert rest == [3, 4, 1, 2, 3, 4] and [step.result.reused for step in done.steps] == [True, False, False]


def test_overrides_of_one_step_and_of_all(tiny_decoder: str, files: Path) -> None:
    path = write(files, three(tiny_decoder, sft={"train": {"learning_rate": 0.5}, "name": "own"}))
    documents = read_steps(
        path, ["steps.sft.train.max_steps=7", "train.seed=3", "model=other", "steps.sft.method.rank=1", "name=new"]
    )
    sft, reward = documents["sft"].values, documents["reward"].values
    assert sft["train"] == {**TRAIN, "learning_rate": 0.5, "max_steps": 7, "seed": 3} and sft["method"]["rank"] == 1
    assert reward["train"] == {**TRAIN, "seed": 3} and reward["method"]["rank"] == 2
    assert (sft["model"], reward["model"]) == ("other", "steps.sft")  # what names a step stays
    assert (sft["name"], reward["name"]) == ("own", "new-reward")
    origins = documents["sft"].origins
    assert origins["train.seed"] == "command line" and origins["train.learning_rate"].startswith("pipeline.yaml:")


def test_what_the_top_says_gives_way_to_another_method_and_other_files(tiny_decoder: str) -> None:
    values = {
        "model": tiny_decoder,
        "method": {"name": "lora", "rank": 2},
        "data": {"path": "all.jsonl", "overlong": "drop"},
        "steps": {"a": {}, "b": {"method": "full", "data": {"train": "b.jsonl"}}, "c": {"method": {"alpha": 4}}},
    }
    documents = read_steps(values)
    assert documents["a"].values["method"] == {"name": "lora", "rank": 2} and "name" not in documents["a"].values
    assert documents["b"].values["method"] == {"name": "full"}
    assert documents["b"].values["data"] == {"train": "b.jsonl", "overlong": "drop"}
    assert documents["c"].values["method"] == {"name": "lora", "rank": 2, "alpha": 4}


@pytest.mark.parametrize(
    ("changes", "overrides", "error", "said"),
    [
        ({"reward": {"model": "steps.stf"}}, [], InputError, r"steps\.reward\.model: steps\.stf is no step. Did you mean 'sft'"),
        ({"sft": {"model": "steps.policy"}}, [], InputError, r"steps\.sft\.model: steps\.policy comes later"),
        ({"sft": {"model": "steps.sft"}}, [], InputError, "is the step itself"),
        ({}, ["steps.polisy.train.seed=1"], InputError, "step 'polisy' is not known. Did you mean 'policy'"),
        ({}, ["train.sed=1"], InputError, "step sft: unknown key 'train.sed' .*Did you mean 'seed'"),
        ({"policy": {"trian": {}}}, [], InputError, r"step policy: unknown key 'trian' \(pipeline.yaml:\d+\)"),
        ({"reward": {"objective": "dpo"}}, [], UnsupportedError, "step policy: steps.reward is no reward model"),
        ({"policy": PPO, "last": {**PPO, "objective": {"name": "ppo", "reward": "steps.policy"}}}, [], UnsupportedError, "step last: steps.policy is no reward model"),
        ({"reward": {"data": {"train": "chats.jsonl"}}}, [], UnsupportedError, "step reward: objective reward needs data of kind"),
        ({"policy": {"data": {"train": "none.jsonl"}}}, [], LuthierError, "step policy: .*none.jsonl"),
        ({"sft": {"method": {"name": "prompt", "tokens": 2}}}, [], UnsupportedError, r"step reward: model.base steps.sft was made by prompt, .* cannot be folded"),
        ({"policy": {"method": {"name": "linear_probe"}}}, [], UnsupportedError, "step policy: method linear_probe"),
        ({"policy": {"name": "desk-sft"}}, [], InputError, "step policy: name: the step sft has the name 'desk-sft' too"),
        ({"policy": {"objective": {"name": "grpo", "rewards": ["number"]}}}, [], DataError, r"step policy: .*the target has no number"),
    ],
)  # fmt: skip
def test_nothing_is_trained_where_a_later_step_cannot_work(
    tiny_decoder: str, files: Path, changes: dict[str, Any], overrides: list[str], error: type[Exception], said: str
) -> None:
    path = write(files, three(tiny_decoder, **changes))
    with pytest.raises(error, match=f"(?s){said}"):
        pipeline(path, overrides)
    assert not list_runs(open_store()) and not list_models(open_store(), "adapter")


def test_a_reward_model_of_another_tokenizer_is_refused_before_anything(
    tiny_decoder: str, tiny_t5: str, files: Path
) -> None:
    values = three(tiny_decoder)
    values["steps"]["policy"]["model"] = tiny_t5
    values["steps"]["policy"]["objective"] = {"name": "grpo", "rewards": [{"model": "steps.reward"}]}
    with pytest.raises(LuthierError, match=r"step policy: .*(another tokenizer|decoder)"):
        pipeline(write(files, values))
    assert not list_runs(open_store())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": {}}, "steps must be a mapping of at least one step"),
        ({"steps": ["sft"]}, "steps must be a mapping"),
        ({"steps": {"a.b": {}}}, "a step's name must be letters"),
        ({"steps": {"a": "sft"}}, r"steps\.a must be the sections of a run"),
        ({"stepps": 1, "steps": {"a": {}}}, r"unknown key 'stepps' .python.. Did you mean 'steps'"),
    ],
)
def test_bad_shapes(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_steps(values)


def test_a_name_that_another_model_has_stops_it_at_once(tiny_decoder: str, files: Path) -> None:
    tune(
        {
            "name": "desk-policy",
            "model": tiny_decoder,
            "method": "lora",
            "objective": "sft",
            "data": {"train": str(files / "chats.jsonl")},
            "train": TRAIN,
        }
    )
    with pytest.raises(ConflictError, match="step policy: the name 'desk-policy' is taken"):
        pipeline(write(files, three(tiny_decoder)))
    assert len(list_runs(open_store())) == 1
    assert pipeline(write(files, three(tiny_decoder)), replace=True).model.meta["objective"] == "grpo"


def test_a_single_run_says_what_a_pipeline_is_for(tiny_decoder: str, files: Path) -> None:
    with pytest.raises(InputError, match="a pipeline of several steps"):
        tune(write(files, three(tiny_decoder)))
    assert find(open_store(), tiny_decoder) and not open_store().promised
    with pytest.raises(NotFoundError):
        find(open_store(), "steps.sft")


def test_the_plan_predicts_every_step_and_leaves_nothing(tiny_decoder: str, files: Path) -> None:
    found = plan(write(files, three(tiny_decoder)))
    assert [step.name for step in found] == ["sft", "reward", "policy"]
    assert all(step.predicted is not None and step.predicted.steps == 2 for step in found)
    assert not list_runs(open_store()) and len(list_models(open_store())) == 1


def test_the_command(tiny_decoder: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(files, three(tiny_decoder)))

    def typed(*more: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            main(["tune", path, *more])
        shown = capsys.readouterr()
        return int(done.value.code or 0), " ".join(shown.out.split()), " ".join(shown.err.split())

    code, out, _ = typed("--plan")
    assert code == 0 and "lora(steps.sft)" in out and "in all" in out
    code, out, err = typed()
    assert (
        code == 0
        and "desk-policy" in out
        and re.search(r"desk-policy grpo 2 reward -?\d+\.\d{4}, loss", out)
        and "step 2 of 3: reward" in err
    )
    code, out, _ = typed()
    assert code == 0 and out.count("done before") == 3
    code, out, _ = typed("--json")
    assert code == 0 and [step["step"] for step in json.loads(out)["steps"]] == ["sft", "reward", "policy"]
    code, _, err = typed("steps.policy.objective.group_size=1")
    assert code == 2 and "step policy" in err and "group_size" in err and "Traceback" not in err
