"""Distilling step-by-step against transformers' own losses of both tasks; which rows have a rationale, what the result is asked with, and a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.test_distill import told
from tests.training.test_tune import tensors

from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, UnsupportedError
from luthier.core.message import Message, user
from luthier.core.task import PromptTemplate
from luthier.evaluation.evaluate import evaluate
from luthier.models.load import LoadedModel, load_model
from luthier.objectives import step_by_step
from luthier.objectives._rows import Limits
from luthier.objectives.step_by_step import Config
from luthier.store.database import open_store
from luthier.store.models import find
from luthier.training.interrupt import Halt
from luthier.training.tune import tune

PROMPT = PromptTemplate("Work it out.", "Q: {input}")
ROWS = [
    ("2 and 3?", "5", "2 parcels and 3 parcels are 5 parcels."),
    ("who is late?", "the courier", ""),
    ("4 and 4?", "8", "Twice 4."),
]
DATA = Dataset(
    "sums",
    "question",
    tuple(
        Example(str(i), user(q), a, source=f"s:{i}", meta={"rationale": why} if why else {})
        for i, (q, a, why) in enumerate(ROWS)
    ),
)


@pytest.fixture(params=["decoder", "encoder-decoder"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    name = request.getfixturevalue({"decoder": "tiny_decoder", "encoder-decoder": "tiny_t5"}[request.param])
    return load_model(open_store(), name, dtype="fp32", device="cpu")


def rows_of(model: LoadedModel, dataset: Dataset = DATA, limits: Limits | None = None, **options: Any) -> list[Any]:
    return step_by_step.prepare(dataset, model, PROMPT, Config(**options), limits or Limits(model.context_length))


def own_loss(model: LoadedModel, prefix: str, question: str, target: str) -> torch.Tensor:
    """transformers' loss of one target, a mean over its tokens."""
    if model.architecture == "encoder-decoder":
        asked = model.tokenizer(f"Work it out.\n\n{prefix}Q: {question}", return_tensors="pt")["input_ids"]
        return model.module(input_ids=asked, labels=model.tokenizer(target, return_tensors="pt")["input_ids"]).loss
    assert model.renderer is not None
    messages = (Message("system", "Work it out."), Message("user", f"{prefix}Q: {question}"))
    before = model.renderer.prompt_ids(messages)
    answer = model.renderer.continuation_ids(target, ends_turn=True)
    labels = torch.tensor([[-100] * len(before) + answer])
    return model.module(input_ids=torch.tensor([before + answer]), labels=labels).loss


@pytest.mark.parametrize(
    "options", [{}, {"rationale_weight": 0.3, "label_prefix": "predict: ", "rationale_prefix": "explain: "}]
)
def test_the_equations(model: LoadedModel, options: dict[str, Any]) -> None:
    config = Config(**options)
    rows = rows_of(model, **options)
    batch = step_by_step.collate(rows, model)
    found = step_by_step.loss(model, batch, config)
    labels = torch.stack([own_loss(model, config.label_prefix, q, a) for q, a, _ in ROWS]).sum() / 3
    reasons = torch.stack([own_loss(model, config.rationale_prefix, q, why) for q, _, why in ROWS if why]).sum() / 3
    wanted = labels + config.rationale_weight * reasons
    torch.testing.assert_close(found.value, wanted, rtol=1e-6, atol=1e-6)
    assert found.count == 3
    assert found.metrics["label_loss"] == pytest.approx(float(labels.detach()), abs=1e-5)
    assert found.metrics["rationale_loss"] == pytest.approx(float(reasons.detach()), abs=1e-5)
    weights = [each for each in model.module.parameters() if each.requires_grad]
    slopes = torch.autograd.grad(wanted, weights, allow_unused=True)
    for got, want in zip(torch.autograd.grad(found.value, weights, allow_unused=True), slopes, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)


def test_the_loss_is_the_same_however_a_step_is_cut(model: LoadedModel) -> None:
    rows, config = rows_of(model), Config()
    whole = float(step_by_step.loss(model, step_by_step.collate(rows, model), config).value.detach())
    alone = [float(step_by_step.loss(model, step_by_step.collate([row], model), config).value.detach()) for row in rows]
    assert sum(alone) / 3 == pytest.approx(whole, rel=1e-5)
    assert [row.rationale is None for row in rows] == [False, True, False]
    assert [row.weight for row in rows] == [1, 1, 1] and rows[0].length > rows[0].label.length


def test_what_bears_loss_token_by_token(model: LoadedModel) -> None:
    rows = rows_of(model)
    shown = step_by_step.collate(rows[:1], model).lines()
    said = [model.tokenizer.decode([t.wanted for t in line if t.wanted is not None]) for line in shown]
    texts = [text for text in said if text]
    assert (
        len(texts) == 2 and texts[0].startswith("5") and texts[1].startswith("2 parcels and 3 parcels are 5 parcels.")
    )
    read = "".join(model.tokenizer.decode([t.read for t in line]) for line in shown)
    assert "[label]" in read and "[rationale]" in read


def test_worked_answers_are_taken_apart(tiny_decoder: str) -> None:
    """GSM8K's form: the reasoning, then #### and the answer."""
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    example = Example("1", user("2 and 3?"), "2 and 3 are <<2+3=5>>5.\n#### 5")
    (row,) = rows_of(model, Dataset("g", "question", (example,)))
    told_ = [model.tokenizer.decode([part.ids[p + 1] for p in part.places]) for part in (row.label, row.rationale)]
    assert told_ == ["5<|im_end|>", "2 and 3 are 5.<|im_end|>"]


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    rows = [
        {"question": f"{i} and 1?", "answer": f"{i + 1}", "rationale": f"after {i} comes {i + 1}"} for i in range(16)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("base", ["tiny_decoder", "tiny_t5"])
def test_the_result_is_asked_for_the_answer_and_a_resume(base: str, sums: Path, request: pytest.FixtureRequest) -> None:
    name = request.getfixturevalue(base)

    def config(called: str) -> dict[str, Any]:
        prompt = {"instruction": "Add.", "input": "Sum: {input}"}
        return told(name, sums, "step_by_step", name=called, prompt=prompt, train={"epochs": 2, "checkpoint_every": 1})

    def stop(record: Any) -> None:
        if record["step"] == 2:
            raise Halt("enough")

    whole = tune(config("whole"))
    with pytest.raises(Halt):
        tune(config("broken"), metrics=stop)
    one, other = tensors(whole), tensors(tune(config("broken")))
    assert one.keys() == other.keys() and all(torch.equal(one[each], other[each]) for each in one)
    assert find(open_store(), "whole").meta["prompt"]["input"] == "[label] Sum: {input}"
    assert {"validation_label_loss", "validation_rationale_loss"} <= set(whole.summary)
    task = sums.parent / "task.yaml"
    task.write_text("data: {path: sums.jsonl}\nmax_new_tokens: 4\n")
    assert evaluate("whole", task).strategy == "own"  # with its own prompt


def test_long_rows(model: LoadedModel) -> None:
    context = 60 if model.architecture == "decoder" else 20
    with pytest.raises(DataError, match="longer than the model's context"):
        rows_of(model, limits=Limits(8))
    limits = Limits(context, "truncate")
    rows = rows_of(model, limits=limits)
    parts = [part for row in rows for part in (row.label, row.rationale) if part is not None]
    assert max(step_by_step._tokens(part) for part in parts) <= context
    step_by_step.loss(model, step_by_step.collate(rows, model), Config())
    dropped = Limits(context, "drop")
    assert len(rows_of(model, limits=dropped)) + len(dropped.dropped) == 3 and (limits.truncated or dropped.dropped)


def test_what_cannot_be_learned(tiny_encoder: str, tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    with pytest.raises(DataError, match=r"no row has a rationale .*rationale, reasoning"):
        rows_of(model, Dataset("plain", "question", (Example("1", user("a"), "b"),)))
    with pytest.raises(DataError, match="1 rows have no answer: s:9"):
        rows_of(model, Dataset("bare", "question", (Example("1", user("a"), None, source="s:9"),)))
    encoder = load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu")
    with pytest.raises(UnsupportedError, match="needs a decoder or an encoder-decoder"):
        rows_of(encoder)
    with pytest.raises(UnsupportedError, match="needs data of kind question or labelled"):
        rows_of(model, Dataset("t", "text", DATA.examples))
