from __future__ import annotations

from typing import Any

import pytest

from luthier.core.engine import Generation
from luthier.core.errors import InputError
from luthier.core.model import ModelRecord
from luthier.gateway.service import Price, read_prices, serve_as
from luthier.store.database import open_store
from luthier.store.models import register


def test_prices() -> None:
    assert read_prices(["1,2"], ["a", "b"]) == {"a": Price(1, 2), "b": Price(1, 2)}
    assert read_prices(["1,2", "b=0.5,3"], ["a", "b"])["b"] == Price(0.5, 3)
    assert read_prices(["fake:x,y=1,2"], ["fake:x,y"]) == {"fake:x,y": Price(1, 2)}
    answer = Generation("", (), (), "stop", prompt_tokens=1_000_000, completion_tokens=500_000)
    assert Price(2.0, 4.0).of(answer) == 4.0
    assert Price(2.0, 4.0).of(answer, with_prompt=False) == 2.0


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "a,b", "c=1,2", "-1,2", "nan,1", "inf,1"])
def test_bad_prices(text: str) -> None:
    with pytest.raises(InputError, match="price"):
        read_prices([text], ["a"])


def test_what_binds_a_model_to_a_task(home: Any, scripted: Any) -> None:
    store = open_store()
    prompt = {"instruction": "i", "input": "{input}", "labels": ["a", "b"]}
    register(store, ModelRecord("base", "base", "decoder", "d" * 64))
    register(store, ModelRecord("tuned", "adapter", "decoder", "e" * 64, base="base", meta={"prompt": prompt}))
    register(store, ModelRecord("desk", "endpoint", "decoder", "f" * 64, meta={"target": "base", "max_new_tokens": 8}))
    free = serve_as("base", scripted(), store, Price())
    assert (free.temperature, free.labels, free.max_new_tokens) == (1.0, (), 256)
    tuned = serve_as("tuned", scripted(), store, Price())
    assert (tuned.temperature, tuned.labels) == (0.0, ("a", "b"))
    desk = serve_as("desk", scripted(), store, Price())
    assert (desk.temperature, desk.max_new_tokens) == (0.0, 8)
    unknown = serve_as("fake", scripted(), store, Price())
    assert (unknown.temperature, unknown.record) == (1.0, None)
