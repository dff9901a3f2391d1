"""kto against the paper's equation from separate forwards, and against TRL on the same tokens, mismatched answers and references."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.objectives.preferences import close, gradients, loaded, log_prob, moved, padded, pairs, trainer

from luthier.core.dataset import Dataset
from luthier.core.errors import DataError
from luthier.core.run import no_progress
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel
from luthier.objectives._rows import Limits
from luthier.objectives.kto import Config, MarkedRow, before, collate, loss, prepare

MARKED = [
    ("Where is my parcel?", "With the courier.", None),
    ("Refund?", "Yes, today.", None),
    ("Is the violin insured?", None, "It is not, sorry."),
    ("我的包裹呢?", "明天到。", None),
]


def rows_of(model: LoadedModel, data: Dataset | None = None, limits: Limits | None = None) -> list[MarkedRow]:
    return prepare(pairs(MARKED) if data is None else data, model, PromptTemplate(), Config(), limits or Limits(512))


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return loaded(tiny_decoder)


def test_tokens_marks_and_the_answers_of_others(model: LoadedModel) -> None:
    rows = rows_of(model)
    text = model.tokenizer.decode
    assert [row.good for row in rows] == [True, True, False, True]
    assert text(rows[2].prompt).endswith("<|im_start|>user\nIs the violin insured?<|im_end|>\n<|im_start|>assistant\n")
    assert [text(row.answer) for row in rows] == [
        "With the courier.<|im_end|>",
        "Yes, today.<|im_end|>",
        "It is not, sorry.<|im_end|>",
        "明天到。<|im_end|>",
    ]
    assert sorted(row.other for row in rows) == sorted(row.answer for row in rows)
    assert all(row.other != row.answer for row in rows)
    assert [row.length for row in rows] == [len(row.prompt) + max(len(row.answer), len(row.other)) - 1 for row in rows]


def test_a_pair_is_two_rows_and_their_other_answer_is_another_prompts(model: LoadedModel) -> None:
    data = pairs([("a", "b", "c"), ("a", "d", None), ("e", "f", "g"), ("a", None, "h")])
    rows = rows_of(model, data)
    text = [model.tokenizer.decode(row.answer, skip_special_tokens=True) for row in rows]
    other = [model.tokenizer.decode(row.other, skip_special_tokens=True) for row in rows]
    assert text == ["b", "c", "d", "f", "g", "h"]
    assert all(o in "fg" if t in "bcdh" else o in "bcdh" for t, o in zip(text, other, strict=True))
    assert [row.good for row in rows] == [True, False, True, True, False, False]


def test_the_answers_of_others_are_good_and_bad_ones_as_the_data_has_them(model: LoadedModel) -> None:
    """A neighbour's would not do: next to each pair stands the good answer of the next."""
    rows = rows_of(model, pairs([(f"question {n}", f"good {n}", f"bad {n}") for n in range(40)]))
    good = {tuple(row.answer): row.good for row in rows}
    share = sum(good[tuple(row.other)] for row in rows) / len(rows)
    assert 0.4 < share < 0.6
    assert [row.other for row in rows] == [
        row.other for row in rows_of(model, pairs([(f"question {n}", f"good {n}", f"bad {n}") for n in range(40)]))
    ]


@pytest.mark.parametrize("weights", [{}, {"desirable_weight": 1.5, "undesirable_weight": 0.7}])
@pytest.mark.parametrize("up", [False, True])
def test_equals_trl(model: LoadedModel, tmp_path: Path, weights: dict[str, float], up: bool) -> None:
    config = Config(beta=0.2, **weights)
    rows = rows_of(model)
    before(model, rows, config, no_progress)
    moved(model)
    if up:  # a divergence above 0, so that it counts
        for row in rows:
            assert row.reference is not None
            row.reference = (row.reference[0], row.reference[1] - 3.0)
    ours = loss(model, collate(rows, model), config)
    ours.value.backward()
    mine = gradients(model.module)
    theirs = trainer("kto", model.module, model.tokenizer, tmp_path, beta=0.2, per_device_train_batch_size=2, **weights)
    theirs.precompute_ref_logps = True
    inputs = padded([(row.prompt, row.answer) for row in rows])
    inputs |= padded([(row.prompt, row.other) for row in rows], prefix="KL_")
    inputs["label"] = torch.tensor([row.good for row in rows])
    for side, name in enumerate(("ref_logps", "ref_KL_logps")):
        inputs[name] = torch.tensor([row.reference[side] for row in rows if row.reference])
    value = theirs._compute_loss(theirs.model, inputs, False)
    value.backward()
    kl = theirs._metrics["eval"]["kl"][-1]
    assert kl > 0 or not up
    assert abs(ours.metrics["kl"] - kl) < 1e-5
    assert abs(float(ours.value.detach()) - float(value.detach())) < 1e-6
    close(mine, gradients(model.module))


def test_equals_the_equation(model: LoadedModel) -> None:
    config = Config(beta=0.3, desirable_weight=1.2, undesirable_weight=0.8)
    rows = rows_of(model)
    before(model, rows, config, no_progress)
    with torch.no_grad():
        for row in rows:
            assert row.reference is not None
            said = [float(log_prob(model.module, row.prompt, answer)) for answer in (row.answer, row.other)]
            assert row.reference == pytest.approx(said, abs=1e-4)
    moved(model)
    with torch.no_grad():
        gains = [
            [
                float(log_prob(model.module, row.prompt, a)) - r
                for a, r in zip((row.answer, row.other), row.reference, strict=True)
            ]  # type: ignore[arg-type]
            for row in rows
        ]
        found = loss(model, collate(rows, model), config)
    z0 = max(0.0, sum(other for _, other in gains) / len(rows))
    values = []
    for row, (gain, _) in zip(rows, gains, strict=True):
        value = 0.3 * (gain - z0) if row.good else 0.3 * (z0 - gain)
        weight = 1.2 if row.good else 0.8
        values.append(weight - weight / (1 + math.exp(-value)))
    assert float(found.value) == pytest.approx(sum(values) / len(values), abs=2e-6)
    assert found.metrics["kl"] == pytest.approx(z0, abs=1e-5)


def test_before_training_nothing_has_moved(model: LoadedModel) -> None:
    rows = rows_of(model)
    before(model, rows, Config(), no_progress)
    with torch.no_grad():
        found = loss(model, collate(rows, model), Config())
    assert float(found.value) == pytest.approx(0.5, abs=1e-5)
    assert found.metrics["kl"] == pytest.approx(0, abs=1e-5)


def test_bad_input(model: LoadedModel) -> None:
    with pytest.raises(DataError, match="all 2 rows have the same prompt"):
        rows_of(model, pairs([("a", "b", "c")]))
    with pytest.raises(DataError, match=r"an answer is empty \(pairs\.jsonl:2\)"):
        rows_of(model, pairs([("a", "b", None), ("b", None, "  ")]))


def test_rows_over_the_context(model: LoadedModel) -> None:
    whole = rows_of(model)
    most = max(len(row.prompt) + len(row.answer) for row in whole) - 1
    with pytest.raises(DataError, match=r"pairs\.jsonl:3"):
        rows_of(model, limits=Limits(most))
    cutting = Limits(most, "truncate")
    cut = rows_of(model, limits=cutting)
    assert cutting.truncated == ["pairs.jsonl:3"]
    assert all(len(row.prompt) + max(len(row.answer), len(row.other)) <= most for row in cut)
    dropping = Limits(most, "drop")
    assert len(rows_of(model, limits=dropping)) == 3
