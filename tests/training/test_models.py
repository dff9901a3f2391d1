"""On the real models: what was learned shows on held-out tickets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from luthier.core.dataset import Dataset, Splits
from luthier.core.task import PromptTemplate
from luthier.data.read import read
from luthier.data.split import split
from luthier.store.database import open_store
from luthier.training.tune import tune

TICKETS = Path(__file__).parents[2] / "examples" / "support" / "tickets.jsonl"

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def splits() -> Splits:
    return split(read(TICKETS), train=0.6, validation=0.1, test=0.3)


def first(dataset: Dataset, count: int) -> Dataset:
    return Dataset(f"{dataset.name}/{count}", dataset.kind, dataset.examples[:count])


def test_a_linear_probe_on_minilm_sorts_tickets(real_home: Path, splits: Splits) -> None:
    config = {"name": "test-probe", "model": "minilm-l6", "method": "linear_probe"}
    result = tune(config, splits=splits, store=open_store(real_home), resume=False, replace=True)
    assert result.summary["validation_accuracy"] > 0.5  # ten classes


def test_lora_on_smollm2_gets_better_on_held_out_tickets(real_home: Path, splits: Splits) -> None:
    few = Splits(first(splits.train, 96), first(splits.validation, 32), first(splits.test, 1))
    prompt = PromptTemplate("Sort the message into: {labels}", "{input}", splits.train.labels)
    store = open_store(real_home)

    def tuned(**train: float) -> Mapping[str, float]:
        config = {"name": "test-lora", "model": "smollm2-135m", "method": "lora", "train": train}
        return tune(config, splits=few, prompt=prompt, store=store, resume=False, replace=True).summary

    untouched = tuned(max_steps=1, learning_rate=1e-9)
    trained = tuned(epochs=1.5, learning_rate=1e-3)
    assert trained["validation_ranking_loss"] < untouched["validation_ranking_loss"] - 0.3
    assert trained["validation_generative_loss"] < 0.5 * untouched["validation_generative_loss"]
