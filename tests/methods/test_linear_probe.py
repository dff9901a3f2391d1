"""The linear probe: only the head, only on encoders, and as good as scikit-learn's logistic regression on the same features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tests.methods.tiny import HEAD

from luthier.core.catalog import load
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import UnsupportedError
from luthier.core.message import user
from luthier.core.task import PromptTemplate
from luthier.methods.linear_probe import Config, build
from luthier.models.load import load_model
from luthier.objectives._rows import Limits
from luthier.store.database import open_store
from luthier.training.config import TrainConfig
from luthier.training.loop import train
from luthier.training.work import Work

COUNTS = {"bert": HEAD["bert"]}

LABELS = ("number", "word")


def test_a_decoder_is_refused_with_advice(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    with pytest.raises(UnsupportedError, match=r"needs an encoder; tiny-decoder is a decoder\n.*method: lora"):
        build(model, Config())


def test_reaches_the_training_accuracy_of_logistic_regression(tiny_encoder: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    words = ["parcel", "violin", "refund", "teacher", "account"]
    texts = [(" ".join(draw.choice(words, 5)), "word") for _ in range(30)]
    texts += [(" ".join(str(draw.integers(10)) for _ in range(5)), "number") for _ in range(30)]
    model = load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu", labels=LABELS)
    model = build(model, Config())
    data = Dataset("d", "labelled", tuple(Example(str(i), user(t), label) for i, (t, label) in enumerate(texts)))
    objective = load("objectives", "classify")
    rows = objective.module.prepare(data, model, PromptTemplate(labels=LABELS), objective.configure(), Limits(128))
    work = Work(
        rows, lambda r: objective.module.collate(r, model), lambda b: objective(model, b, objective.configure())
    )
    config = TrainConfig(epochs=40, batch_size=16, learning_rate=3e-2)
    train(model.module, work, config, folder=tmp_path, metrics=lambda record: None)
    features = torch.stack([row.features for row in rows])
    right = np.array([row.label for row in rows])
    reference = LogisticRegression(max_iter=2000).fit(features.numpy(), right).score(features.numpy(), right)
    with torch.no_grad():
        ours = (model.module.classify(features).argmax(-1).numpy() == right).mean()
    assert ours >= reference - 0.02
    assert reference > 0.9
