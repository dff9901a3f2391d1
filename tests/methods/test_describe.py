"""The catalogue of methods in words: what each option means, and parameters counted without weights."""

from __future__ import annotations

import pytest
import torch

from luthier.core.catalog import names
from luthier.core.errors import NotFoundError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.methods._describe import count, describe, kind, meanings
from luthier.models.load import load_model
from luthier.models.shapes import load_shapes, parameter_counts
from luthier.store.database import open_store
from luthier.store.models import find


@pytest.mark.parametrize("name", names("methods"))
def test_every_method_says_what_it_is_and_what_its_options_mean(name: str) -> None:
    told = describe(name)
    assert told.summary.endswith(".") and told.architectures and told.serving
    assert all(option.meaning for option in told.options), [o.key for o in told.options if not o.meaning]
    assert not told.paper or told.paper.rpartition(", ")[2].startswith("https://")


def test_meanings_are_cut_at_the_next_option() -> None:
    text = (
        "``rank`` r of it; ``alpha`` its scale (2 r, or more\nwith ``stable``).\n\n``on``: whether ``rank`` counts. More.\n"
        "``a`` and ``b`` go together."
    )
    assert meanings(text, ["rank", "alpha", "stable", "on", "a", "b", "lost"]) == {
        "rank": "r of it",
        "alpha": "its scale (2 r, or more with stable).",
        "stable": "see alpha",
        "on": "whether rank counts. More.",
        "a": "a and b go together.",
        "b": "a and b go together.",
    }


def test_types_in_words() -> None:
    from typing import Literal

    assert kind(Literal["x", "y"] | list[str]) == "x | y or list of text"  # type: ignore[arg-type]
    assert [kind(each) for each in (int, float | None, bool, dict[str, int])] == [
        "whole number",
        "number",
        "true or false",
        "mapping",
    ]


def test_counts_without_weights_are_those_with_weights(tiny_decoder: str, tiny_encoder: str) -> None:
    store = open_store()
    for name in (tiny_decoder, tiny_encoder):
        found = count(store, find(store, name), ("lora", "layer_norm", "bitfit", "linear_probe", "full"))
        whole = sum(p.numel() for p in load_model(store, name, labels=("a", "b")).module.parameters())
        assert found["full"].trained == found["full"].total == found["layer_norm"].total == whole
        assert found["lora"].share == found["lora"].trained / found["lora"].total
        if name == tiny_decoder:
            assert found["layer_norm"].trained == 5 * 32
            assert found["bitfit"].why_not.endswith("(LlamaForCausalLM) has none")
            assert found["linear_probe"].why_not == "needs encoder" and found["linear_probe"].share == 0.0
        else:
            assert found["linear_probe"].trained == 2 * 32 + 2


def test_a_sketch_holds_no_weights(tiny_decoder: str) -> None:
    store = open_store()
    model = load_shapes(store, find(store, tiny_decoder))
    assert {p.device.type for p in model.module.parameters()} == {"meta"}
    assert model.module.lm_head.weight is model.module.model.embed_tokens.weight
    assert parameter_counts(model)[0] == 0 and model.device == torch.device("meta")


def test_what_has_no_shapes_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="live is an endpoint"):
        load_shapes(None, ModelRecord("live", "endpoint", "decoder", "d"))  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="Did you mean 'lora'"):
        describe("lroa")
