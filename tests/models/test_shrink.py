"""Students with some of a model's layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from luthier.core.errors import ConflictError, InputError, UnsupportedError
from luthier.models.adapters import inner_of
from luthier.models.load import load_model
from luthier.models.pull import pull
from luthier.models.shrink import keep_layers, shrink
from luthier.store.database import open_store
from luthier.store.lineage import lineage
from luthier.store.models import find


@pytest.fixture
def deep(home: Path, tiny_encoder_path: Path, tmp_path: Path) -> str:
    """The tiny encoder with four layers."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path / "deep"
    AutoTokenizer.from_pretrained(str(tiny_encoder_path)).save_pretrained(str(folder))
    config = BertConfig.from_pretrained(str(tiny_encoder_path), num_hidden_layers=4)
    torch.manual_seed(1)
    BertModel(config).save_pretrained(str(folder))
    return pull(f"file:{folder}", alias="deep").name


def test_a_student_holds_the_layers_that_were_asked_for_and_all_else(deep: str) -> None:
    store = open_store()
    made = shrink(deep, "student", [1, 3])
    assert (made.kind, made.meta["layers"], made.base) == ("base", [1, 3], None)
    whole, half = (inner_of(load_model(store, name, dtype="fp32", device="cpu")) for name in (deep, "student"))
    assert half.config.num_hidden_layers == 2 and len(half.encoder.layer) == 2
    torch.testing.assert_close(half.embeddings.state_dict(), whole.embeddings.state_dict(), rtol=0, atol=0)
    for there, here in zip((1, 3), half.encoder.layer, strict=True):
        torch.testing.assert_close(here.state_dict(), whole.encoder.layer[there].state_dict(), rtol=0, atol=0)
    ids = torch.tensor([[2, 9, 30, 3]])
    hidden = whole.embeddings(input_ids=ids)
    for place in (1, 3):
        out = whole.encoder.layer[place](hidden)
        hidden = out[0] if isinstance(out, tuple) else out
    torch.testing.assert_close(half(ids).last_hidden_state, hidden)
    assert find(store, deep).digest != made.digest
    assert any(edge.source.id == deep and edge.relation == "layers of" for edge in lineage("student").edges)


def test_every_second_layer_is_the_rule(deep: str) -> None:
    assert shrink(deep, "student").meta["layers"] == [0, 2]
    assert shrink(deep, "again", [0, 2]).digest == find(open_store(), "student").digest


def test_a_decoder_answers_with_fewer_layers(tiny_decoder: str) -> None:
    shrink(tiny_decoder, "student", [1])
    model = load_model(open_store(), "student", dtype="fp32", device="cpu")
    assert len(model.module.model.layers) == model.module.config.num_hidden_layers == 1
    assert model.renderer is not None
    assert model.module(torch.tensor([[5, 6]]), use_cache=True).past_key_values.get_seq_length(0) == 2


def test_settings_by_layer_are_cut_too() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = Qwen2Config(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        layer_types=kinds,
    )
    model = Qwen2ForCausalLM(config)
    assert keep_layers(model, [0, 3]) == (0, 3)
    assert model.config.layer_types == ["full_attention", "sliding_attention"]


@pytest.mark.parametrize("layers", [[], [0, 4], [2, 1], [1, 1], [-1]])
def test_layers_that_are_not_there(deep: str, layers: list[int]) -> None:
    with pytest.raises(InputError, match="layers must be different numbers of 0 to 3, ascending"):
        shrink(deep, "student", layers)


def test_refusals(deep: str, tiny_t5: str) -> None:
    with pytest.raises(InputError, match="at least one of the 4 out"):
        shrink(deep, "student", [0, 1, 2, 3])
    with pytest.raises(UnsupportedError, match="encoder-decoder"):
        shrink(tiny_t5, "student")
    with pytest.raises(ConflictError, match="taken"):
        shrink(deep, deep)
