"""DistilBERT's three terms against transformers' own models and torch's own losses; whose head the student begins with; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.test_distill import refused, told
from tests.objectives.test_distill_layers import deep
from tests.objectives.test_masked_lm import documents, pretrained
from tests.training.test_tune import tensors
from torch import Tensor, nn

from luthier.core.catalog import load
from luthier.core.errors import InputError, MismatchError, UnsupportedError
from luthier.core.run import no_progress
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel, load_model
from luthier.models.masked_head import FILE, masked_head
from luthier.models.pull import pull
from luthier.models.shrink import shrink
from luthier.models.weights import read_tensors
from luthier.objectives import distilbert
from luthier.objectives._rows import Limits
from luthier.objectives._soft_targets import CHUNK, Product, divergence, vocabulary_divergence
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.training.interrupt import Halt
from luthier.training.tune import tune


@pytest.fixture
def speaking(home: Path, tiny_encoder_path: Path, tmp_path: Path) -> tuple[str, Any]:
    """A random BERT with its language-model head, pulled, and the same as transformers' own model."""
    whole = pretrained("bert", tiny_encoder_path, tmp_path / "speaking")
    return pull(f"file:{tmp_path / 'speaking'}", alias="speaking").name, whole


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    lines = [f"parcel number {i} has not arrived, and the courier does not answer" for i in range(12)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def fresh(name: str, config: distilbert.Config) -> LoadedModel:
    torch.manual_seed(0)
    model = load_model(open_store(), name, dtype="fp32", device="cpu")
    model.module.requires_grad_(True)
    distilbert.heads(model, config)
    return model


def ready(model: LoadedModel, config: distilbert.Config) -> list[Any]:
    rows = distilbert.prepare(documents(), model, PromptTemplate(), config, Limits(model.context_length))
    with torch.no_grad():
        distilbert.before(model, rows, config, no_progress)
    return rows


def reference(student: Any, teacher: Any, plain: Any, config: distilbert.Config) -> dict[str, Tensor]:
    """The terms by torch's own losses, from transformers' outputs, as the published distiller computes them."""
    labels = torch.full_like(plain.ids, -100)
    labels.view(-1)[plain.places] = plain.targets
    ours = student(input_ids=plain.ids, attention_mask=plain.mask, output_hidden_states=True)
    with torch.no_grad():
        theirs = teacher(input_ids=plain.ids, attention_mask=plain.mask, output_hidden_states=True)
    real = plain.mask.bool()
    chosen = (labels > -1) if config.restrict_ce_to_mask else real
    kl, t = nn.KLDivLoss(reduction="batchmean"), config.temperature
    one, other = ours.hidden_states[-1][real], theirs.hidden_states[-1][real]
    return {
        "ce": kl((ours.logits[chosen] / t).log_softmax(-1), (theirs.logits[chosen] / t).softmax(-1)) * t**2,
        "mlm": nn.CrossEntropyLoss(ignore_index=-100)(ours.logits.flatten(0, 1), labels.flatten()),
        "cos": nn.CosineEmbeddingLoss()(one, other, torch.ones(len(one))),
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"restrict_ce_to_mask": True, "temperature": 3.0, "alpha_ce": 0.4, "alpha_mlm": 1.0, "alpha_cos": 0.5},
        {"alpha_cos": 0.0, "alpha_mlm": 0.0},
    ],
)
def test_the_equations(
    options: dict[str, Any], speaking: tuple[str, Any], tiny_encoder_path: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForMaskedLM

    name, teacher = speaking
    config = distilbert.Config(teacher=name, train_head=True, **options)
    half = fresh(shrink(name, "half", [1]).name, config)
    rows = ready(half, config)
    batch = distilbert.collate(rows, half)
    student = AutoModelForMaskedLM.from_pretrained(str(tmp_path / "speaking")).eval()
    del student.bert.encoder.layer[0]  # with its teacher's head, which Luthier copies
    terms = reference(student, teacher, batch.plain, config)
    wanted = config.alpha_ce * terms["ce"] + config.alpha_mlm * terms["mlm"] + config.alpha_cos * terms["cos"]
    found = distilbert.loss(half, batch, config)
    torch.testing.assert_close(found.value, wanted, rtol=1e-6, atol=1e-6)
    assert found.count == sum(row.weight for row in rows)
    assert found.metrics["divergence"] == pytest.approx(float(terms["ce"].detach()) / config.temperature**2, abs=1e-6)
    if config.alpha_cos:
        assert found.metrics["cosine_distance"] == pytest.approx(float(terms["cos"].detach()), abs=1e-6)
        assert found.metrics["cross_entropy"] == pytest.approx(float(terms["mlm"].detach()), abs=1e-6)
    torch.autograd.backward(found.value)
    torch.autograd.backward(wanted)
    theirs = dict(student.named_parameters())
    for part, parameter in half.module.body.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[f"bert.{part}"].grad, rtol=1e-3, atol=1e-5, msg=part)
    own = half.module.lm_head
    torch.testing.assert_close(own.bias.grad, student.cls.predictions.bias.grad, rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in own.parameters())


def test_in_pieces_is_the_same_as_at_once() -> None:
    torch.manual_seed(0)
    tokens = 2 * CHUNK + 5
    ours = Product(
        torch.randn(tokens, 4, requires_grad=True),
        torch.randn(11, 4, requires_grad=True),
        torch.randn(11, requires_grad=True),
    )
    theirs = Product(torch.randn(tokens, 6), torch.randn(13, 6), None)  # rows for words that the student lacks
    found = vocabulary_divergence(ours, theirs, 2.0)
    logits, said = ours.features @ ours.weight.T + ours.bias, (theirs.features @ theirs.weight.T)[:, :11]
    wanted = divergence(logits, said, 2.0, "forward")
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    parts = [ours.features, ours.weight, ours.bias]
    for got, want in zip(torch.autograd.grad(found, parts), torch.autograd.grad(wanted, parts), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_student_begins_with_the_head_of_its_teacher(speaking: tuple[str, Any], tiny_encoder: str) -> None:
    name, _ = speaking
    config = distilbert.Config(teacher=name)
    student = fresh(tiny_encoder, config)
    assert not student.module.lm_head.own and student.module.lm_head.bias.requires_grad
    teacher = masked_head(load_model(open_store(), name, dtype="fp32", device="cpu"))
    drawn = {n: p.detach().clone() for n, p in student.module.lm_head.named_parameters()}
    ready(student, config)
    for part, parameter in student.module.lm_head.named_parameters():
        assert torch.equal(parameter, dict(teacher.named_parameters())[part]) and not torch.equal(
            parameter, drawn[part]
        )
    own = fresh(name, config)  # one that has its own keeps it
    assert own.module.lm_head.own and not own.module.lm_head.bias.requires_grad


def test_a_copy_has_only_the_words_to_learn(speaking: tuple[str, Any]) -> None:
    config = distilbert.Config(teacher=speaking[0])
    copy = fresh(speaking[0], config)
    found = distilbert.loss(copy, distilbert.collate(ready(copy, config), copy), config)
    assert found.metrics["divergence"] == pytest.approx(0, abs=1e-6)
    assert found.metrics["cosine_distance"] == pytest.approx(0, abs=1e-6)
    assert float(found.value.detach()) == pytest.approx(2.0 * found.metrics["cross_entropy"], abs=1e-4)


@pytest.mark.parametrize("method", ["full", "lora", {"name": "prompt", "tokens": 3}])
def test_the_verb_and_a_resume(speaking: tuple[str, Any], corpus: Path, method: Any) -> None:
    shrink(speaking[0], "half", [0])
    objective = {"name": "distilbert", "teacher": speaking[0]}

    def config(name: str) -> dict[str, Any]:
        return told("half", corpus, objective, method, name=name, train={"epochs": 3, "checkpoint_every": 1})

    def stop(record: Any) -> None:
        if record["step"] == 3:
            raise Halt("enough")

    made = tune(config("whole"))
    whole = tensors(made)
    with pytest.raises(Halt):
        tune(config("broken"), metrics=stop)
    broken = tensors(tune(config("broken")))
    assert whole.keys() == broken.keys() and all(torch.equal(tensor, broken[name]) for name, tensor in whole.items())
    folder = path_of(open_store(), made.model.digest)
    assert set(read_tensors(folder / FILE)) and made.model.meta["objective"] == "distilbert"
    assert masked_head(load_model(open_store(), "whole", dtype="fp32", device="cpu")).own


def test_a_teacher_that_was_tuned_to_speak(tiny_encoder: str, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence encoder has no head; tuned with masked_lm it has one, and can teach."""
    objective = {"name": "distilbert", "teacher": tiny_encoder}
    with pytest.raises(UnsupportedError, match="has no language-model head"):
        tune(told(tiny_encoder, corpus, objective))
    tune(told(tiny_encoder, corpus, "masked_lm", name="speaks"))
    half = shrink(tiny_encoder, "half", [0]).name
    made = tune(told(half, corpus, {**objective, "teacher": "speaks"}, "full"))
    assert made.model.meta["objective"] == "distilbert" and made.summary["validation_divergence"] >= 0


def test_what_cannot_teach(
    speaking: tuple[str, Any],
    tiny_encoder: str,
    tiny_decoder: str,
    tiny_encoder_path: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = deep(tiny_encoder_path, tmp_path / "wide", "wide", width=48)

    def config(base: str, teacher: str, **options: Any) -> dict[str, Any]:
        return told(base, corpus, {"name": "distilbert", "teacher": teacher, **options})

    refused(MismatchError, "has 32, its teacher wide 48", config(tiny_encoder, wide), monkeypatch)
    refused(UnsupportedError, "needs an encoder", config(tiny_decoder, tiny_decoder), monkeypatch)
    entry = load("objectives", "distilbert")
    with pytest.raises(InputError, match="there is nothing to learn"):
        entry.configure({"teacher": "x", "alpha_ce": 0, "alpha_mlm": 0, "alpha_cos": 0})
    with pytest.raises(InputError, match="mask and random must sum to at most 1"):
        entry.configure({"teacher": "x", "mask": 0.8, "random": 0.3})


def test_bf16(speaking: tuple[str, Any]) -> None:
    shrink(speaking[0], "half", [0])
    values = []
    for dtype in ("fp32", "bf16"):
        config = distilbert.Config(teacher=speaking[0])
        model = load_model(open_store(), "half", dtype=dtype, device="cpu")
        distilbert.heads(model, config)
        found = distilbert.loss(model, distilbert.collate(ready(model, config), model), config)
        values.append(float(found.value.detach()))
    assert values[1] == pytest.approx(values[0], rel=0.03)
