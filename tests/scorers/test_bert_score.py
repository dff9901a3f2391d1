from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.core.errors import DataError, InputError, NotFoundError, UnsupportedError
from luthier.scorers._score import Answer, Resources, Target
from luthier.scorers.bert_score import Config, TokenVectors, match, score, score_many

PAIRS = [
    ("The parcel has not arrived.", "Please refund the parcel."),
    ("account", "I cannot sign in since I changed my password; the code never comes."),
    ("我的包裹还没有到", "请帮我查一下。"),
]


def reference(
    folder: Path, answer: str, target: str, layer: int, idf: dict[int, float] | None = None
) -> dict[str, float]:
    """The paper's equations, one pair at a time, over the hidden states that transformers gives."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(str(folder)), AutoModel.from_pretrained(str(folder)).eval()

    def tokens(text: str) -> tuple[Any, Any]:
        ids = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = model(**ids, output_hidden_states=True).hidden_states[layer][0].numpy()
        special = (tokenizer.cls_token_id, tokenizer.sep_token_id)
        weights = [0.0 if i in special else (idf or {}).get(i, 1.0) for i in ids["input_ids"][0].tolist()]
        return states / np.linalg.norm(states, axis=1, keepdims=True), weights

    (y, wy), (x, wx) = tokens(answer), tokens(target)
    recall = sum(w * max(float(a @ b) for b in y) for a, w in zip(x, wx, strict=True)) / sum(wx)
    precision = sum(w * max(float(a @ b) for b in x) for a, w in zip(y, wy, strict=True)) / sum(wy)
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / (precision + recall)}


@pytest.mark.parametrize("layer", [-1, 1, 0])
def test_it_is_the_papers_equation_over_hidden_states(tiny_encoder: str, tiny_encoder_path: Path, layer: int) -> None:
    config = Config(model=tiny_encoder, layer=layer)
    answers, targets = [Answer(a) for a, _ in PAIRS], [Target(t) for _, t in PAIRS]
    for got, pair in zip(score_many(answers, targets, config, Resources()), PAIRS, strict=True):
        expected = reference(tiny_encoder_path, *pair, layer)
        assert dict(got.detail) == pytest.approx(expected, abs=1e-5)
        assert got.value == got.detail["f1"]


def test_figures_options_and_references(tiny_encoder: str) -> None:
    answer, wrong = Answer(PAIRS[0][0]), Target(PAIRS[0][1])
    both = Target(PAIRS[0][1], references=(PAIRS[0][1], PAIRS[0][0]))
    plain = score(answer, wrong, Config(model=tiny_encoder))
    assert score(answer, both, Config(model=tiny_encoder)).value == pytest.approx(1.0, abs=1e-5)
    for figure in ("precision", "recall"):
        assert score(answer, wrong, Config(model=tiny_encoder, figure=figure)).value == plain.detail[figure]


def test_idf_weighs_tokens_by_how_rare_they_are(tiny_encoder: str, tiny_encoder_path: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    documents = ["the parcel", "the refund", "the account and the lesson"]
    file = tmp_path / "idf.txt"
    file.write_text("\n".join(documents) + "\n\n", encoding="utf-8")
    rows = [set(ids) for ids in AutoTokenizer.from_pretrained(str(tiny_encoder_path))(documents)["input_ids"]]
    idf = {token: math.log(4 / (1 + sum(token in row for row in rows))) for token in range(400)}
    got = score(Answer(PAIRS[0][0]), Target(PAIRS[0][1]), Config(model=tiny_encoder, idf=str(file)))
    assert dict(got.detail) == pytest.approx(reference(tiny_encoder_path, *PAIRS[0], -1, idf), abs=1e-5)


def test_a_baseline_file_rescales(tiny_encoder: str, tmp_path: Path) -> None:
    file = tmp_path / "baseline.csv"
    file.write_text("LAYER,P,R,F\n1,0.1,0.1,0.1\n2,0.5,0.25,0.2\n", encoding="utf-8")
    plain = score(Answer(PAIRS[0][0]), Target(PAIRS[0][1]), Config(model=tiny_encoder)).detail
    got = score(Answer(PAIRS[0][0]), Target(PAIRS[0][1]), Config(model=tiny_encoder, baseline=str(file))).detail
    assert got["precision"] == pytest.approx((plain["precision"] - 0.5) / 0.5)
    assert got["f1"] == pytest.approx((plain["f1"] - 0.2) / 0.8)


def test_long_texts_are_cut_and_empty_ones_score_zero(tiny_encoder: str) -> None:
    config = Config(model=tiny_encoder)
    assert score(Answer("parcel " * 500), Target("parcel"), config).value is not None
    assert score(Answer(""), Target("parcel"), config).value == 0.0
    assert score(Answer("parcel"), Target(""), config).value == 0.0


def test_matching_is_greedy_and_one_sided() -> None:
    def rows(*angles: float) -> TokenVectors:
        vectors = np.array([[math.cos(a), math.sin(a)] for a in angles], dtype=np.float32)
        return TokenVectors(vectors, np.ones(len(angles)))

    got = match(rows(0.0, 0.0), rows(0.0, math.pi / 2))
    assert got == pytest.approx({"precision": 1.0, "recall": 0.5, "f1": 2 / 3}, abs=1e-6)


def test_what_cannot_be_used_is_named(tiny_encoder: str, tiny_decoder: str, tmp_path: Path) -> None:
    def fails(error: type[Exception], said: str, **options: Any) -> None:
        with pytest.raises(error, match=said):
            score(Answer("x"), Target("y"), Config(**{"model": tiny_encoder, **options}))

    fails(InputError, "layer must be from -3 to 2", layer=3)
    fails(UnsupportedError, "encoder", model=tiny_decoder)
    fails(NotFoundError, "nothing", model="nothing")
    fails(DataError, "cannot be read", idf=str(tmp_path / "none.txt"))
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    fails(DataError, "no documents", idf=str(empty))
    fails(DataError, "LAYER", baseline=str(empty))
    (tmp_path / "b.csv").write_text("LAYER,P,R,F\n1,0.1,0.1,0.1\n")
    fails(DataError, "layer 2", baseline=str(tmp_path / "b.csv"))
    fails(DataError, "cannot be read", baseline=str(tmp_path / "none.csv"))
