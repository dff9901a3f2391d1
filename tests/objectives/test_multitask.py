"""multitask against the single objectives' own losses, and its models trained, resumed, asked and served by task."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import torch.nn.functional as F
from tests.objectives.preferences import loaded
from torch import Tensor

from luthier.core import catalog
from luthier.core.dataset import Dataset, Example
from luthier.core.engine import Sampling
from luthier.core.errors import ConflictError, InputError, LuthierError, UnsupportedError
from luthier.core.message import user
from luthier.core.task import PromptTemplate
from luthier.data.shares import Mixture
from luthier.gateway.serve import running
from luthier.models.load import LoadedModel, load_model
from luthier.models.weights import read_tensors
from luthier.objectives._rows import Limits
from luthier.objectives._tasks import TaskHeads, answering
from luthier.objectives.multitask import Config, collate, heads_for, loss, prepare
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.store.models import find
from luthier.strategies._load import load
from luthier.training.config import TrainConfig
from luthier.training.loop import train
from luthier.training.sources import Layout
from luthier.training.tune import tune
from luthier.training.work import Work, mean_loss

MOOD = [("so happy", "joy"), ("leave me alone with it", "anger"), ("what a fine day", "joy"), ("no!", "anger")]
TOPIC = [
    ("the match", "sport"),
    ("they voted on the new law today", "world"),
    ("shares fell", "money"),
    ("a goal", "sport"),
]
ASKED = [("2+2?", "4"), ("Who is the teacher now, and since when?", "Ms Li, since May")]
QUALITY = [("good", 4.0), ("bad", 1.0), ("rather good, all in all", 3.5)]
PROMPT = PromptTemplate("Be brief.")


def labelled(name: str, rows: list[tuple[str, str]]) -> Dataset:
    made = (Example(f"{name}{n}", user(t), y, source=f"{name}.jsonl:{n}") for n, (t, y) in enumerate(rows, 1))
    return Dataset(f"{name}/train", "labelled", tuple(made))


def asked(name: str = "asked") -> Dataset:
    made = (Example(f"q{n}", user(t), y, source=f"q.jsonl:{n}") for n, (t, y) in enumerate(ASKED, 1))
    return Dataset(f"{name}/train", "question", tuple(made))


def quality(name: str = "quality") -> Dataset:
    made = (Example(f"u{n}", user(t), str(y), source=f"u.jsonl:{n}", score=y) for n, (t, y) in enumerate(QUALITY, 1))
    return Dataset(f"{name}/train", "number", tuple(made))


def together(*parts: Dataset) -> Dataset:
    return Dataset("all", parts[0].kind, tuple(e for p in parts for e in p.examples), parts=parts)


def rows_of(model: LoadedModel, part: Dataset, config: Config) -> list[Any]:
    return prepare(part, model, PROMPT, config, Limits(model.context_length))


def made(name: str, config: Config, *parts: Dataset) -> LoadedModel:
    model = loaded(name)
    model.module.requires_grad_(True)
    torch.manual_seed(3)
    heads_for(model, together(*parts), config)
    for head in model.head.heads.values():
        torch.nn.init.normal_(head.weight, std=0.3)
    for module in model.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def alone(model: LoadedModel, part: Dataset, objective: str, prompt: PromptTemplate, **options: Any) -> Tensor:
    """The loss of a single objective over a dataset, on a model that has the task's head and labels."""
    entry = catalog.load("objectives", objective)
    config = entry.configure(options)
    with answering(model, part.name.partition("/")[0]):
        rows = entry.module.prepare(part, model, prompt, config, Limits(model.context_length))
        value: Tensor = entry(model, entry.module.collate(rows, model), config).value
    return value


def test_each_task_has_its_own_head_labels_and_loss(tiny_encoder: str) -> None:
    config = Config.model_validate(
        {"tasks": {"mood": {"objective": "classify"}, "topic": {"objective": "classify", "weight": 2.5}}}
    )
    mood, topic = labelled("mood", MOOD), labelled("topic", TOPIC)
    model = made(tiny_encoder, config, mood, topic)
    assert model.labels == ()
    heads = model.head
    assert isinstance(heads, TaskHeads)
    assert {task: head.out_features for task, head in heads.heads.items()} == {"mood": 2, "topic": 3}
    for part, weight in ((mood, 1.0), (topic, 2.5)):
        task = part.name.partition("/")[0]
        rows = rows_of(model, part, config)
        found = loss(model, collate(rows, model), config)
        ids = [row.row.ids for row in rows]
        states = torch.cat(
            [model.module.pooled(torch.tensor([r]), torch.ones(1, len(r), dtype=torch.int64)) for r in ids]
        )
        targets = torch.tensor([part.labels.index(str(e.target)) for e in part.examples])
        expected = F.cross_entropy(heads.heads[task](states), targets)
        assert float(found.value.detach()) == pytest.approx(weight * float(expected.detach()), abs=1e-6)
        assert (found.count, model.head) == (4, heads)
        if weight != 1:
            assert found.metrics["unweighted_loss"] == pytest.approx(float(expected.detach()), abs=1e-6)


def test_normalising_and_uncertainty_are_the_papers(tiny_encoder: str) -> None:
    tasks = {"mood": {"objective": "classify"}, "topic": {"objective": "classify", "weight": 3.0}}
    config = Config.model_validate({"tasks": tasks, "normalise": True, "weighting": "uncertainty"})
    mood, topic = labelled("mood", MOOD), labelled("topic", TOPIC)
    model = made(tiny_encoder, config, mood, topic)
    with torch.no_grad():
        model.head.log_variances["topic"].fill_(0.7)
    plain = float(alone(model, topic, "classify", PROMPT).detach())
    found = loss(model, collate(rows_of(model, topic, config), model), config)
    assert float(found.value.detach()) == pytest.approx(3 * (math.exp(-0.7) * plain / math.log(3) + 0.35), abs=1e-6)
    found.value.backward()  # type: ignore[no-untyped-call]
    slope = model.head.log_variances["topic"].grad
    assert slope is not None
    assert float(slope) == pytest.approx(3 * (0.5 - math.exp(-0.7) * plain / math.log(3)), abs=1e-6)
    assert model.head.log_variances["mood"].grad is None


class _Gradients:
    """What the loop hands to a method before a step."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def before(self, step: int, total: int, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        self.found = self.found or {name: g.clone() for name, g in gradients.items()}

    def after(self, step: int, total: int, weights: Mapping[str, Tensor]) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        pass


@pytest.mark.parametrize("max_tokens", [4096, 64])
def test_a_step_is_the_weighted_sum_of_the_single_losses(tiny_decoder: str, tmp_path: Path, max_tokens: int) -> None:
    """Three tasks that count tokens, rows and numbers; whatever the micro-batches."""
    tasks = {
        "topic": {"objective": {"name": "classify", "generative_weight": 0.5}, "weight": 2.0, "instruction": "Topic?"},
        "asked": {"objective": "sft", "weight": 0.5},
        "quality": {"objective": "regress"},
    }
    config = Config.model_validate({"tasks": tasks})
    parts = (labelled("topic", TOPIC), asked(), quality())
    model = made(tiny_decoder, config, *parts)
    topic_prompt = PromptTemplate("Topic?", "{input}", parts[0].labels)
    losses = [
        alone(model, parts[0], "classify", topic_prompt, generative_weight=0.5),
        alone(model, parts[1], "sft", PROMPT),
        alone(model, parts[2], "regress", PROMPT),
    ]
    counts = [len(part) for part in parts]
    expected = sum(n / sum(counts) * w * value for n, w, value in zip(counts, (2.0, 0.5, 1.0), losses, strict=True))
    assert isinstance(expected, Tensor)
    names = [name for name, p in model.module.named_parameters() if p.requires_grad]
    wanted = dict(
        zip(
            names,
            torch.autograd.grad(expected, [dict(model.module.named_parameters())[n] for n in names], allow_unused=True),
            strict=True,
        )
    )
    rows = [row for part in parts for row in rows_of(model, part, config)]
    layout = Layout(Mixture(tuple(tasks)), tuple(counts))
    work = Work(rows, lambda r: collate(r, model), lambda b: loss(model, b, config), layout=layout, apart=True)
    evaluated = mean_loss(work, max_tokens=max_tokens)
    weighted = [2.0 * float(losses[0].detach()), 0.5 * float(losses[1].detach()), float(losses[2].detach())]
    assert [evaluated[f"loss/{task}"] for task in tasks] == pytest.approx(weighted, abs=1e-6)
    assert evaluated["loss"] == pytest.approx(sum(weighted) / 3, abs=1e-6), "in validation every task counts the same"
    hook, records = _Gradients(), list[Mapping[str, Any]]()
    train(
        model.module,
        work,
        TrainConfig(epochs=1, batch_size=16, max_tokens_per_batch=max_tokens, clip=0),
        folder=tmp_path,
        metrics=records.append,
        steps=hook,
    )
    assert records[0]["loss"] == pytest.approx(float(expected.detach()), abs=1e-6)
    for name, gradient in wanted.items():
        if gradient is not None:
            assert torch.allclose(hook.found[name], gradient, atol=1e-6), name


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        ({"mood": {"objective": "classify"}}, InputError, "must be the data.sources, mood, asked"),
        (
            {"mood": {"objective": "regress"}, "asked": {"objective": "sft"}},
            UnsupportedError,
            "task mood: objective regress needs",
        ),
        ({"mood": {"objective": "classify"}, "asked": {"objective": "classify"}}, UnsupportedError, "task asked"),
    ],
)
def test_tasks_that_do_not_fit_the_data(tiny_decoder: str, tasks: Any, error: type[LuthierError], message: str) -> None:
    model = loaded(tiny_decoder)
    with pytest.raises(error, match=message):
        heads_for(model, together(labelled("mood", MOOD), asked()), Config.model_validate({"tasks": tasks}))


def test_an_objective_alone_stands_for_a_task() -> None:
    short, long = (Config.model_validate({"tasks": {"a": task}}) for task in ("sft", {"objective": {"name": "sft"}}))
    assert short == long


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"objective": "similarity"}, "cannot share a body"),
        ({"objective": "multitask"}, "cannot share a body"),
        ({"objective": {"name": "classify", "smoothing": 1}}, "unknown key 'smoothing'"),
        ({"objective": "clasify"}, "not known"),
        ({"objective": 3}, "must be the name of an objective"),
        ({"objective": "classify", "weight": 0}, "greater than 0"),
        ({"objective": "classify", "input": "x"}, "must hold {input}"),
    ],
)
def test_tasks_that_cannot_be(task: Any, message: str) -> None:
    with pytest.raises(LuthierError, match=message):
        catalog.load("objectives", "multitask").configure({"tasks": {"a": task}})


# ---- from a configuration


def written(folder: Path, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(path)}


def sources(folder: Path) -> list[dict[str, Any]]:
    return [
        written(folder, "mood", [{"text": f"{t} {n}", "label": y} for n in range(3) for t, y in MOOD]),
        written(folder, "topic", [{"text": f"{t} {n}", "label": y} for n in range(4) for t, y in TOPIC]),
        written(folder, "quality", [{"text": f"{t} {n}", "score": y + n / 10} for n in range(4) for t, y in QUALITY]),
        written(
            folder,
            "people",
            [
                {
                    "text": f"{n} asked Li",
                    "entities": [{"start": len(f"{n} asked "), "end": len(f"{n} asked Li"), "type": "PER"}],
                }
                for n in range(8)
            ],
        ),
    ]


def settings(base: str, folder: Path, **change: Any) -> dict[str, Any]:
    tasks = {
        "mood": {"objective": "classify"},
        "topic": {"objective": "classify"},
        "quality": {"objective": "regress"},
        "people": {"objective": "tag"},
    }
    return {
        "name": "both",
        "model": base,
        "data": {"sources": sources(folder), "sampling": "equal"},
        "method": {"name": "lora", "rank": 2},
        "objective": {"name": "multitask", "tasks": tasks},
        "train": {"epochs": 2, "batch_size": 8, "dtype": "fp32", "checkpoint_every": 1},
        **change,
    }


def said(name: str, prompts: Sequence[Any], **sampling: Any) -> list[str]:
    with closing(load(name)) as engine:
        return [answer.text for answer in engine.generate(prompts, Sampling(**sampling))]


def test_every_task_is_a_model_of_its_own(tiny_encoder: str, tmp_path: Path) -> None:
    result = tune(settings(tiny_encoder, tmp_path))
    assert result.summary["models"] == ["both", "both-mood", "both-topic", "both-quality", "both-people"]
    for key in (
        "validation_loss",
        "validation_loss/mood",
        "validation_accuracy/topic",
        "validation_mae/quality",
        "validation_pearson/quality",
    ):
        assert math.isfinite(result.summary[key]), key
    assert "validation_accuracy" not in result.summary, "not every task has one"
    store = open_store()
    body = find(store, "both")
    assert (body.meta["tasks"], body.meta["labels"]) == (["both-mood", "both-topic", "both-quality", "both-people"], [])
    topic = find(store, "both-topic")
    assert (topic.meta["task"], topic.meta["objective"], topic.meta["labels"]) == (
        "topic",
        "classify",
        ["money", "sport", "world"],
    )
    assert len({find(store, name).digest for name in result.summary["models"]}) == 5, (
        "what caches and engines tell models by"
    )
    files = [
        path_of(store, find(store, name).digest) / "adapter_model.safetensors" for name in result.summary["models"]
    ]
    assert len({file.stat().st_ino for file in files}) == 1, "the shared body is on the disk once"
    prompts = [user("a goal 1"), user("they voted on the new law today 9")]
    answers = said("both-topic", prompts)
    assert set(answers) <= {"money", "sport", "world"}
    assert set(said("both-mood", prompts)) <= {"joy", "anger"}
    assert all(math.isfinite(float(text)) for text in said("both-quality", prompts))
    assert all(isinstance(json.loads(text), list | dict) for text in said("both-people", prompts))
    single = load_model(store, "both-topic", dtype="fp32", device="cpu")
    ids = single.tokenizer(["a goal 1"], return_tensors="pt")
    logits = single.module(ids["input_ids"], ids["attention_mask"])
    assert single.labels[int(logits.argmax())] == answers[0]
    assert load_model(store, "both", device="cpu").head is None
    with running(["both-topic", "both-mood"]) as url:  # one base in memory, one body, two heads
        for name, expected in (("both-topic", answers), ("both-mood", said("both-mood", prompts))):
            asked = {"model": name, "messages": [{"role": "user", "content": "a goal 1"}], "temperature": 0}
            answer = httpx.post(f"{url}/chat/completions", json=asked).json()
            assert answer["choices"][0]["message"]["content"] == expected[0]
    assert tune(settings(tiny_encoder, tmp_path)).reused


def test_a_decoder_has_a_prompt_and_labels_for_each_task(tiny_decoder: str, tmp_path: Path) -> None:
    asked_rows = [{"question": f"{n}: {t}", "answer": y} for n in range(4) for t, y in ASKED]
    data = {"sources": [sources(tmp_path)[1], written(tmp_path, "asked", asked_rows)]}
    tasks = {"topic": {"objective": "classify", "instruction": "Topic? {labels}"}, "asked": {"objective": "sft"}}
    tune(settings(tiny_decoder, tmp_path, data=data, objective={"name": "multitask", "tasks": tasks}))
    store = open_store()
    topic, answered = find(store, "both-topic"), find(store, "both-asked")
    assert topic.meta["prompt"] == {
        "instruction": "Topic? {labels}",
        "input": "{input}",
        "labels": ["money", "sport", "world"],
    }
    assert answered.meta["prompt"]["labels"] == []
    assert find(store, "both").meta["prompt"] is None
    assert len(said("both-asked", [user("2+2?")], max_new_tokens=3)) == 1


def test_killed_and_resumed_it_is_the_same(
    tiny_encoder: str, tmp_path: Path, tiny_encoder_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.models.pull import pull

    objective = settings(tiny_encoder, tmp_path)["objective"] | {"weighting": "uncertainty", "normalise": True}
    values = settings(tiny_encoder, tmp_path, objective=objective)

    def kill(record: Mapping[str, Any]) -> None:
        if record["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(values, metrics=kill)
    resumed = tune(values)
    store = open_store()
    found = {
        name: read_tensors(path_of(store, find(store, name).digest) / "head.safetensors")
        for name in resumed.summary["models"][1:]
    }
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "other"))
    pull(f"file:{tiny_encoder_path}", alias="tiny-encoder")
    whole = tune(values)
    assert whole.summary["steps"] == resumed.summary["steps"]
    store = open_store()
    for name, tensors in found.items():
        expected = read_tensors(path_of(store, find(store, name).digest) / "head.safetensors")
        assert all(torch.equal(tensors[key], expected[key]) for key in expected), name


def test_what_is_refused_before_training(tiny_encoder: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="multitask needs data"):
        tune(settings(tiny_encoder, tmp_path, data=sources(tmp_path)[0]))
    with pytest.raises(InputError, match="trains heads alone"):
        tune(settings(tiny_encoder, tmp_path, method="linear_probe"))
    tune(settings(tiny_encoder, tmp_path, name="both-topic", data=sources(tmp_path)[0], objective="classify"))
    with pytest.raises(ConflictError, match="'both-topic' is taken"):
        tune(settings(tiny_encoder, tmp_path))
