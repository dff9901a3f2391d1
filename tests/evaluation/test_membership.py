from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from luthier.core.errors import InputError, UnsupportedError
from luthier.evaluation.membership import auc, membership, min_k
from luthier.models.load import LoadedModel, load_model
from luthier.store.database import open_store

TEXTS = [
    "The parcel has not arrived and the courier does not answer.",
    "Please refund the deposit for the violin.",
    "I cannot sign in since I changed my password.",
    "My lesson was cancelled twice.",
    "Who is the teacher now?",
]
OTHERS = [f"billing {i} refund delivery account lessons" for i in range(5)]


def test_min_k_is_the_mean_of_the_least_likely_tokens() -> None:
    assert min_k([-1.0, -9.0, -2.0, -8.0, -3.0, -4.0, -5.0, -6.0, -7.0, -10.0]) == pytest.approx(-9.5)
    assert min_k([-1.0, -3.0]) == -3.0, "at least one"
    assert min_k([-1.0, -3.0], share=1.0) == -2.0
    with pytest.raises(InputError):
        min_k([])


def test_auc_is_that_of_scikit_learn_and_its_interval_covers() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.normal(0.5, 1, 60).round(1), draw.normal(0, 1, 80).round(1)
    found = auc(first.tolist(), second.tolist())
    wanted = roc_auc_score([1] * 60 + [0] * 80, np.concatenate([first, second]))
    assert found["value"] == pytest.approx(wanted)
    truth, inside = 0.6382, 0  # of two normals half a deviation apart
    for seed in range(100):
        draw = np.random.default_rng(seed)
        bounds = auc(draw.normal(0.5, 1, 60).tolist(), draw.normal(0, 1, 60).tolist(), seed=seed)
        inside += bounds["low"] <= truth <= bounds["high"]
    assert inside >= 88


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


def test_a_model_that_learnt_the_texts_is_found_out(model: LoadedModel) -> None:
    before = membership(model, TEXTS, non_members=OTHERS)
    assert before.auc is not None and set(before.sets) == {"test", "non_members"}
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-2)
    assert model.renderer is not None
    for _ in range(25):
        for text in TEXTS:
            ids = torch.tensor([model.renderer.prompt_ids(text)])
            optimizer.zero_grad()
            model.module(ids, labels=ids).loss.backward()
            optimizer.step()
    after = membership(model, TEXTS, non_members=OTHERS)
    assert after.auc is not None
    assert after.auc["value"] == 1.0 and "likelier than the non-members" in after.meaning
    assert after.sets["test"].mean > before.sets["test"].mean + 1


def test_without_non_members_nothing_is_claimed(model: LoadedModel) -> None:
    found = membership(model, [*TEXTS, "", "a"], contaminated=frozenset([0, 1]))
    assert found.auc is None and "Nothing follows" in found.meaning
    assert {name: d.texts for name, d in found.sets.items()} == {"test": 5, "contaminated": 2, "clean": 3}
    assert found.too_short == 2
    assert found.as_dict()["sets"]["test"]["p10"] <= found.sets["test"].p50 <= found.sets["test"].p90


def test_what_cannot_be_asked(model: LoadedModel, tiny_encoder: str) -> None:
    with pytest.raises(InputError, match="two tokens"):
        membership(model, ["", "a"])
    with pytest.raises(InputError, match="share must be"):
        membership(model, TEXTS, share=0.0)
    with pytest.raises(UnsupportedError, match="encoder"):
        membership(load_model(open_store(), tiny_encoder), TEXTS)
