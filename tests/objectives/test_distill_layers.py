"""Layer-wise distillation against the equations, with hidden states of transformers and attention scores worked out from the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.test_distill import LABELLED, LABELS, PROMPT, TEXTS, named, refused, told
from tests.training.test_tune import tensors, write_tickets
from torch import Tensor, nn

from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, InputError, MismatchError, UnsupportedError
from luthier.core.message import user
from luthier.core.run import no_progress
from luthier.models.load import LoadedModel, load_model
from luthier.models.pull import pull
from luthier.models.shrink import shrink
from luthier.models.weights import read_tensors
from luthier.objectives import distill_layers
from luthier.objectives._rows import Limits
from luthier.objectives.distill_layers import mapping
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.training.interrupt import Halt
from luthier.training.tune import tune

PLAIN = Dataset(
    "plain", "text", tuple(Example(str(i), user(text), source=f"p:{i}") for i, (text, _) in enumerate(TEXTS))
)


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    return write_tickets(tmp_path / "tickets.jsonl", 10)


def deep(path: Path, folder: Path, name: str, *, width: int = 32, heads: int = 4, layers: int = 4) -> str:
    """A random BERT with the tiny encoder's tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    AutoTokenizer.from_pretrained(str(path)).save_pretrained(str(folder))
    config = BertConfig.from_pretrained(
        str(path), num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, initializer_range=0.2
    )
    torch.manual_seed(5)
    BertModel(config).save_pretrained(str(folder))
    return pull(f"file:{folder}", alias=name).name


@pytest.fixture(params=[32, 48])
def teacher(
    request: pytest.FixtureRequest, tiny_encoder: str, tiny_encoder_path: Path, tickets: Path, tmp_path: Path
) -> str:
    """Four layers, as wide as the student or wider."""
    base = deep(tiny_encoder_path, tmp_path / "deep", "deep", width=request.param)
    return tune(told(base, tickets, "classify", name="teacher")).model.name


def plain_scores(body: nn.Module, hidden: list[Tensor]) -> list[Tensor]:
    """Q K^T / sqrt(d) of every layer of a BERT, (heads, length, length), from what enters it."""
    out = []
    for layer, entering in zip(body.encoder.layer, hidden[:-1], strict=True):
        own = layer.attention.self
        width = own.attention_head_size
        query, key = (
            part(entering[0]).view(entering.shape[1], -1, width).transpose(0, 1) for part in (own.query, own.key)
        )
        out.append(query @ key.transpose(1, 2) / width**0.5)
    return out


def looked_at(model: LoadedModel, text: str) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Hidden states, scores and label logits of one text."""
    inputs = model.tokenizer(text, return_tensors="pt")
    body = model.module.body
    out = body(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True)
    hidden = list(out.hidden_states)
    return (
        hidden,
        plain_scores(body, hidden),
        model.module.head(hidden[-1][0].mean(0)) if model.module.head else hidden[-1],
    )


def prepared(model: LoadedModel, dataset: Dataset, **options: Any) -> tuple[list[Any], distill_layers.Config]:
    config = distill_layers.Config(**options)
    distill_layers.heads(model, config)
    rows = distill_layers.prepare(dataset, model, PROMPT, config, Limits(model.context_length))
    with torch.no_grad():
        distill_layers.before(model, rows, config, no_progress)
    return rows, config


@pytest.mark.parametrize("kind", ["labelled", "text"])
@pytest.mark.parametrize(("layers", "pairs"), [("uniform", [1, 3]), ("last", [2, 3]), ((0, 3), [0, 3])])
def test_the_equations(tiny_encoder: str, teacher: str, kind: str, layers: Any, pairs: list[int]) -> None:
    torch.manual_seed(0)
    dataset, labels = (LABELLED, LABELS) if kind == "labelled" else (PLAIN, ())
    student, whole = named(tiny_encoder, labels), named(teacher)
    student.module.requires_grad_(True)
    weights = {"embeddings": 0.5, "hidden": 2.0, "attention": 0.7}
    predicts = {"prediction": 1.5, "temperature": 2.0} if kind == "labelled" else {}
    rows, config = prepared(student, dataset, teacher=teacher, layers=layers, **weights, **predicts)
    projections = getattr(student.module, "projections", {"embeddings": nn.Identity(), "hidden": nn.Identity()})
    assert isinstance(projections["hidden"], nn.Identity) == (whole.module.width == 32)
    terms = dict.fromkeys(("embeddings", "hidden", "attention", "prediction"), torch.zeros(()))
    for text, _ in TEXTS:
        (hs, a_s, zs), (ht, at, zt) = looked_at(student, text), looked_at(whole, text)
        square = nn.MSELoss()
        terms["embeddings"] = terms["embeddings"] + square(projections["embeddings"](hs[0]), ht[0].detach())
        for m, g in enumerate(pairs):
            terms["hidden"] = terms["hidden"] + square(projections["hidden"](hs[m + 1]), ht[g + 1].detach())
            terms["attention"] = terms["attention"] + square(a_s[m], at[g].detach())
        if kind == "labelled":
            soft = (zt.detach() / 2).softmax(-1)
            terms["prediction"] = terms["prediction"] - (soft * (zs / 2).log_softmax(-1)).sum()
    weights |= {"prediction": 1.5}
    wanted = sum(weights[name] * term for name, term in terms.items()) / len(TEXTS)
    found = distill_layers.loss(student, distill_layers.collate(rows, student), config)
    assert float(found.value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6, abs=1e-6)
    for name in weights if kind == "labelled" else ("embeddings", "hidden", "attention"):
        assert found.metrics[name] == pytest.approx(float(terms[name].detach()) / len(TEXTS), rel=1e-5)
        assert found.metrics[name] > 1e-4
    trained = dict(student.module.named_parameters())
    slopes = torch.autograd.grad(wanted, list(trained.values()), allow_unused=True)
    found.value.backward()
    for (name, parameter), slope in zip(trained.items(), slopes, strict=True):
        assert (parameter.grad is None) == (slope is None), name
        if slope is not None:
            torch.testing.assert_close(parameter.grad, slope, rtol=1e-3, atol=1e-5, msg=name)


def test_a_copy_has_nothing_to_imitate(tiny_encoder: str) -> None:
    student = named(tiny_encoder, ())
    rows, config = prepared(student, PLAIN, teacher=tiny_encoder)
    assert float(distill_layers.loss(student, distill_layers.collate(rows, student), config).value.detach()) < 1e-9


def test_padding_counts_for_nothing(tiny_encoder: str, teacher: str) -> None:
    student = named(tiny_encoder, LABELS)
    rows, config = prepared(student, LABELLED, teacher=teacher)
    alone = [
        float(distill_layers.loss(student, distill_layers.collate([row], student), config).value.detach())
        for row in rows
    ]
    together = distill_layers.loss(student, distill_layers.collate(rows, student), config)
    assert float(together.value.detach()) == pytest.approx(sum(alone) / len(rows), rel=1e-5)
    assert len({row.length for row in rows}) > 1 and together.count == len(rows)


def test_mappings() -> None:
    assert mapping("uniform", 4, 12) == [2, 5, 8, 11]
    assert mapping("uniform", 3, 6) == [1, 3, 5]
    assert mapping("uniform", 4, 6) == [0, 2, 3, 5]
    assert mapping("last", 3, 6) == [3, 4, 5]
    assert mapping([5, 0], 2, 6) == [5, 0]
    for bad in ([0], [0, 6], [-1, 2]):
        with pytest.raises(InputError, match="one of the teacher's layers 0 to 5 for each of the student's 2"):
            mapping(bad, 2, 6)


@pytest.mark.parametrize("method", ["lora", "full", {"name": "prompt", "tokens": 3}])
def test_the_verb(tiny_encoder: str, teacher: str, tickets: Path, method: Any) -> None:
    """What was learned to compare widths is not part of the result."""
    made = tune(
        told(tiny_encoder, tickets, {"name": "distill_layers", "teacher": teacher}, method, train={"epochs": 4})
    )
    from luthier.store import runs

    losses = [r["loss"] for r in runs.read_metrics(runs.folder(open_store(), made.run.id) / runs.METRICS)]
    assert all(loss > 0 for loss in losses)
    if isinstance(method, str):  # three virtual tokens in front of a random model lower little of this
        assert sum(losses[-3:]) < sum(losses[:3])
    held = [n for p in path_of(open_store(), made.model.digest).glob("*.safetensors") for n in read_tensors(p)]
    assert held and not [name for name in held if "projection" in name]
    again = load_model(open_store(), made.model.name, device="cpu")
    assert again.labels == LABELS and not hasattr(again.module, "projections")


def test_on_plain_text_then_on_labels(tiny_encoder: str, teacher: str, tickets: Path, tmp_path: Path) -> None:
    """The paper's two stages, beginning with every second layer of the teacher."""
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps({"text": f"{text} number {i}"}) + "\n" for i in range(8) for text, _ in TEXTS))
    student = shrink(teacher, "student").name
    first = tune(told(student, plain, {"name": "distill_layers", "teacher": teacher}, "full", name="first"))
    assert first.model.meta["labels"] == []
    second = tune(told("first", tickets, {"name": "distill", "teacher": teacher}, "full", name="second"))
    assert tuple(second.model.meta["labels"]) == LABELS
    assert load_model(open_store(), "second", device="cpu").module.body.config.num_hidden_layers == 2


def test_equal_seeds_and_a_resume_give_equal_weights(tiny_encoder: str, teacher: str, tickets: Path) -> None:
    objective = {"name": "distill_layers", "teacher": teacher}
    train = {"epochs": 3, "checkpoint_every": 1}

    def config(name: str) -> dict[str, Any]:
        return told(tiny_encoder, tickets, objective, {"name": "lora", "dropout": 0.2}, name=name, train=train)

    whole = tensors(tune(config("whole")))

    def stop(record: Mapping[str, Any]) -> None:
        if record["step"] == 4:
            raise Halt("enough")

    with pytest.raises(Halt):
        tune(config("broken"), metrics=stop)
    started: list[int] = []
    broken = tensors(tune(config("broken"), started=lambda start: started.append(start.resumed_at)))
    assert started[0] > 0
    assert whole.keys() == broken.keys() and all(torch.equal(tensor, broken[name]) for name, tensor in whole.items())


def test_bf16(tiny_encoder: str, teacher: str) -> None:
    values = []
    for dtype in ("fp32", "bf16"):
        torch.manual_seed(0)
        student = load_model(open_store(), tiny_encoder, dtype=dtype, device="cpu", labels=LABELS)
        rows, config = prepared(student, LABELLED, teacher=teacher)
        values.append(float(distill_layers.loss(student, distill_layers.collate(rows, student), config).value.detach()))
    assert values[1] == pytest.approx(values[0], rel=0.03)


def test_what_cannot_be_imitated(
    tiny_encoder: str,
    tiny_decoder: str,
    tiny_t5: str,
    tiny_encoder_path: Path,
    tickets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    two = deep(tiny_encoder_path, tmp_path / "two", "two", heads=2)
    shallow = deep(tiny_encoder_path, tmp_path / "one", "one", layers=1)
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps({"text": f"number {i} is here"}) + "\n" for i in range(6)))

    def config(base: str, teacher: str, data: Path = plain, method: str = "lora", **options: Any) -> dict[str, Any]:
        return told(base, data, {"name": "distill_layers", "teacher": teacher, **options}, method)

    refused(UnsupportedError, "needs an encoder or a decoder", config(tiny_t5, tiny_t5), monkeypatch)
    refused(
        UnsupportedError,
        "distilled on data of kind text, chat, question",
        config(tiny_decoder, tiny_decoder, tickets),
        monkeypatch,
    )
    refused(MismatchError, "has 4 attention heads, its teacher two 2", config(tiny_encoder, two), monkeypatch)
    refused(MismatchError, "has 2 layers, its teacher one only 1", config(tiny_encoder, shallow), monkeypatch)
    refused(InputError, "for each of the student's 2", config(tiny_encoder, two, layers=[0], attention=0), monkeypatch)
    refused(InputError, "plain text has no labels", config(tiny_encoder, tiny_encoder, prediction=1.0), monkeypatch)
    nothing = {"embeddings": 0, "hidden": 0, "attention": 0}
    refused(InputError, "are 0", config(tiny_encoder, tiny_encoder, **nothing), monkeypatch)
    refused(UnsupportedError, "has no labels: an encoder", config(tiny_encoder, tiny_encoder, tickets), monkeypatch)
    tune(told(tiny_encoder, tickets, "classify", name="tuned"))
    refused(
        InputError, "the head would learn nothing", config(tiny_encoder, "tuned", tickets, prediction=0), monkeypatch
    )
    with pytest.raises(UnsupportedError, match="this method leaves them as they are"):
        tune(config(tiny_encoder, "tuned", tickets, "linear_probe"))
    assert tune(config(tiny_encoder, two, attention=0)).model.name
    student = named(tiny_encoder, ())
    with pytest.raises(DataError, match="1 rows hold no text: p:9"):
        prepared(student, Dataset("p", "text", (Example("9", user(" "), source="p:9"),)), teacher=tiny_encoder)
    with pytest.raises(DataError, match="longer than the model's context of 6 tokens"):
        distill_layers.prepare(PLAIN, student, PROMPT, distill_layers.Config(teacher=tiny_encoder), Limits(6))
    cut = Limits(6, "truncate")
    rows = distill_layers.prepare(PLAIN, student, PROMPT, distill_layers.Config(teacher=tiny_encoder), cut)
    assert max(row.length for row in rows) == 6 and all(row.ids[-1] == 3 for row in rows) and cut.truncated
