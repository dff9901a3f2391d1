"""Light adapters answer as PEFT's own modules do, alone and in mixed batches, and leave to PEFT what they are not for."""

from __future__ import annotations

import copy
import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from luthier.core.errors import DataError, MismatchError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.models import rows
from luthier.models.adapters import inner_of, peft_models, put_inner
from luthier.models.attach import attach, detach, save_trained, select
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.store.database import open_store

IDS = torch.tensor([[5, 9, 30, 7], [8, 6, 40, 11], [5, 9, 30, 7], [3, 4, 12, 50], [8, 6, 40, 11]])
MODELS = ["tiny_decoder", "tiny_gpt2", "tiny_encoder", "tiny_t5"]
LAST = {  # the feed-forward's second layer, and two more
    "tiny_decoder": ["down_proj", "q_proj", "v_proj"],
    "tiny_gpt2": ["mlp.c_proj", "c_attn", "c_fc"],
    "tiny_encoder": ["output.dense", "query", "value"],
    "tiny_t5": ["wo", "q", "v"],
}


def fresh(name: str, dtype: str = "fp32") -> LoadedModel:
    return load_model(open_store(), name, dtype=dtype, device="cpu")


@torch.no_grad()
def answer(model: LoadedModel, ids: torch.Tensor = IDS) -> torch.Tensor:
    inner = inner_of(model).eval()
    if model.architecture == "encoder-decoder":
        return inner(input_ids=ids, decoder_input_ids=ids).logits
    out = inner(input_ids=ids)
    return out.last_hidden_state if model.architecture == "encoder" else out.logits


def save(name: str, folder: Path, config: Any, seed: int = 0, dtype: str = "fp32") -> torch.Tensor:
    """Save a random adapter in PEFT's layout; what PEFT answers with it."""
    model = fresh(name, dtype)
    torch.manual_seed(seed)
    put_inner(model, get_peft_model(inner_of(model), config, autocast_adapter_dtype=False).to(model.dtype))
    for parameter in inner_of(model).parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    save_trained(model, folder, {"saves": "adapter"})
    return answer(model)


def put_on(model: LoadedModel, folder: Path, name: str, *, light: bool = True) -> None:
    attach(model, ModelRecord(name, "adapter", model.architecture, ""), name, folder=folder, light=light)


def configs(kind: str) -> dict[str, Any]:
    """What a light adapter may ask for."""
    last, one, two = LAST[kind]
    pattern = {"regex": rf".*({one}|{two})"}
    return {
        "lora": LoraConfig(r=4, lora_alpha=8, target_modules=[last, one, two], lora_dropout=0.1),
        "patterns": LoraConfig(
            r=4, lora_alpha=8, target_modules=[one, two], rank_pattern={one: 2}, alpha_pattern={rf".*\.{two}": 3}
        ),
        "rslora": LoraConfig(r=4, lora_alpha=8, target_modules=[one], use_rslora=True, init_lora_weights="gaussian"),
        "regex": LoraConfig(r=3, target_modules=pattern["regex"]),
        "ia3": IA3Config(target_modules=[last, one], feedforward_modules=[last]),
    }


@pytest.mark.parametrize("kind", MODELS)
def test_light_adapters_answer_as_peft_does(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    name = request.getfixturevalue(kind)
    asked = configs(kind)
    expected = {each: save(name, tmp_path / each, config, seed) for seed, (each, config) in enumerate(asked.items())}
    model = fresh(name)
    bare = answer(model)
    modules = sum(1 for _ in model.module.modules())
    for each in asked:
        put_on(model, tmp_path / each, each)
        torch.testing.assert_close(answer(model), bare, rtol=0, atol=0)
    assert peft_models(model) == {} and sum(1 for _ in model.module.modules()) == modules
    for each in [*asked, None, *reversed(asked)]:
        select(model, each)
        assert (expected[each] - bare).abs().max() > 1e-3 if each else True
        torch.testing.assert_close(answer(model), expected[each] if each else bare, rtol=1e-5, atol=1e-5)
    for each in asked:
        detach(model, each)
        torch.testing.assert_close(answer(model), bare, rtol=0, atol=0)
        assert model.light.nbytes(each) == 0
    assert not list(model.light.changes("lora"))


@pytest.mark.parametrize("kind", MODELS)
def test_every_row_has_its_own_adapter(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    name = request.getfixturevalue(kind)
    asked = configs(kind)
    model = fresh(name)
    expected = {None: answer(model)}
    for seed, (each, config) in enumerate(asked.items()):
        expected[each] = save(name, tmp_path / each, config, seed)
        put_on(model, tmp_path / each, each)
    for names in (["lora", "ia3", None, "patterns", "rslora"], ["ia3", "ia3", "lora", "ia3", None], [None] * 5):
        with rows.answering(names):
            found = answer(model)
        for row, each in enumerate(names):
            torch.testing.assert_close(found[row], expected[each][row], rtol=1e-5, atol=1e-5)
    with rows.answering(["lora", "ia3"]), pytest.raises(UnsupportedError, match="is given 5 rows where 2 are answered"):
        answer(model)
    select(model, "lora")  # rows win over what is selected, and leave no trace
    with rows.answering([None] * 5):
        torch.testing.assert_close(answer(model), expected[None], rtol=0, atol=0)
    torch.testing.assert_close(answer(model), expected["lora"], rtol=1e-5, atol=1e-5)


def test_in_16_bits_as_near_as_peft(tiny_decoder: str, tmp_path: Path) -> None:
    config = configs("tiny_decoder")["lora"]
    exact = save(tiny_decoder, tmp_path / "exact", config)
    expected = save(tiny_decoder, tmp_path / "a", config, dtype="bf16")
    model = fresh(tiny_decoder, "bf16")
    put_on(model, tmp_path / "a", "a")
    select(model, "a")
    found = answer(model)
    assert found.dtype == torch.bfloat16
    assert all(change.a.dtype == torch.bfloat16 for _, _, change in model.light.changes("a"))
    assert (found.float() - exact).abs().max() < 1.5 * (expected.float() - exact).abs().max()


NOT_LIGHT = {
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True, "target_modules": ["c_attn"]},
    "saved": {"modules_to_save": ["c_fc"]},
    "head": {"target_modules": ["c_attn", "lm_head"]},
    "tokens": {"trainable_token_indices": [3, 4]},
    "embeddings": {"target_modules": ["wte"]},
}


@pytest.mark.parametrize("kind", sorted(NOT_LIGHT))
def test_the_rest_is_left_to_peft(kind: str, tiny_gpt2: str, tmp_path: Path) -> None:
    options = {"r": 4, "target_modules": ["c_attn"], **NOT_LIGHT[kind]}
    expected = save(tiny_gpt2, tmp_path / "plain", LoraConfig(r=4, target_modules=["c_attn"]), 1)
    other = save(tiny_gpt2, tmp_path / "other", LoraConfig(**options), 2)
    for order in (["plain", "other"], ["other", "plain"]):
        model = fresh(tiny_gpt2)
        bare = answer(model)
        for each in order:
            put_on(model, tmp_path / each, each)
        assert model.attached["plain"].light and not model.attached["other"].light
        for each in (*order, None, *order):
            select(model, each)
            right = {"plain": expected, "other": other, None: bare}[each]
            torch.testing.assert_close(answer(model), right, rtol=1e-5, atol=1e-5)
        for each in order:
            detach(model, each)
        torch.testing.assert_close(answer(model), bare, rtol=0, atol=0)


def test_beside_peft_adapters_of_several_kinds_in_any_order(tiny_decoder: str, tmp_path: Path) -> None:
    """PEFT's kinds have trees of modules of their own; a light adapter is in all of them, also those that came before or after it."""
    from peft import LoHaConfig, OFTConfig

    asked = {
        "q": LoraConfig(r=2, target_modules=["q_proj"]),
        "loha": LoHaConfig(r=2, target_modules=["q_proj", "k_proj"]),
        "k": LoraConfig(r=2, target_modules=["k_proj", "down_proj"]),
        "oft": OFTConfig(oft_block_size=8, r=0, target_modules=["k_proj"]),
        "v": LoraConfig(r=2, target_modules=["v_proj", "k_proj"]),
    }
    expected = {each: save(tiny_decoder, tmp_path / each, c, n) for n, (each, c) in enumerate(asked.items())}
    for order in (list(asked), list(reversed(asked)), ["loha", "oft", "q", "k", "v"]):
        model = fresh(tiny_decoder)
        expected[None] = answer(model)  # type: ignore[index]
        for each in order:
            put_on(model, tmp_path / each, each)
        for each in [*order, None, "k", "oft", "v", "loha", "q", None]:
            select(model, each)
            torch.testing.assert_close(answer(model), expected[each], rtol=1e-5, atol=1e-5)  # type: ignore[index]
        for gone, still in (("oft", "k"), ("q", "v"), ("loha", "k")):
            detach(model, gone)
            select(model, still)
            torch.testing.assert_close(answer(model), expected[still], rtol=1e-5, atol=1e-5)


def test_many_adapters_are_tensors_and_hardly_anything_else(tiny_decoder: str, tmp_path: Path) -> None:
    save(tiny_decoder, tmp_path, LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "down_proj"]))
    model = fresh(tiny_decoder)
    put_on(model, tmp_path, "first")

    def count(kind: type) -> int:
        gc.collect()
        return sum(isinstance(each, kind) for each in gc.get_objects())

    modules, containers = count(nn.Module), count(dict)
    for number in range(20):
        put_on(model, tmp_path, f"a{number}")
    assert count(nn.Module) == modules
    assert count(dict) < containers + 20 * 4  # a record of each, and none for its layers
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert model.light.nbytes("a3") == sum(t.nbytes for t in tensors.values())
    blocks = {change.a.untyped_storage().data_ptr() for _, _, change in model.light.changes("a3")}
    assert len(blocks) == 1


def test_a_copy_of_the_modules_has_weights_of_its_own(tiny_decoder: str, tmp_path: Path) -> None:
    save(tiny_decoder, tmp_path, LoraConfig(r=4, target_modules=["q_proj"]))
    model = fresh(tiny_decoder)
    put_on(model, tmp_path, "a")
    bare = answer(model)
    twin = copy.deepcopy(model.module)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        assert twin(IDS).logits.abs().max() == 0
    torch.testing.assert_close(answer(model), bare, rtol=0, atol=0)


@pytest.mark.parametrize("kind", MODELS)
def test_merged(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    name = request.getfixturevalue(kind)
    for number, (each, config) in enumerate(configs(kind).items()):
        expected = save(name, tmp_path / each, config, number)
        model = fresh(name)
        put_on(model, tmp_path / each, each)
        select(model, each)
        merged = merge(model)
        torch.testing.assert_close(answer(merged), expected, rtol=1e-5, atol=1e-5)
        again = fresh(name)
        inner_of(again).load_state_dict(inner_of(merged).state_dict())
        torch.testing.assert_close(answer(again), expected, rtol=1e-5, atol=1e-5)


def test_files_that_are_damaged_or_do_not_fit(tiny_decoder: str, tmp_path: Path) -> None:
    save(tiny_decoder, tmp_path, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    model = fresh(tiny_decoder)
    bare, path = answer(model), tmp_path / "adapter_model.safetensors"
    config = tmp_path / "adapter_config.json"
    text, tensors = config.read_text(), load_file(path)
    for wrong in ({"r": 3}, {"target_modules": ["q_proj"]}, {"target_modules": ["q_proj", "k_proj"]}):
        config.write_text(json.dumps(json.loads(text) | wrong))
        with pytest.raises(MismatchError, match="does not fit tiny-decoder and its own"):
            put_on(model, tmp_path, "a")
    config.write_text(json.dumps(json.loads(text) | {"target_modules": ["nothing"]}))
    save_file({}, path)
    with pytest.raises(MismatchError, match="does not fit"):
        put_on(model, tmp_path, "a")
    config.write_text("{")
    with pytest.raises(DataError, match="adapter_config"):
        put_on(model, tmp_path, "a")
    config.write_text(text)
    path.write_bytes(b"\x7f" * 100)
    with pytest.raises(DataError, match="adapter_model"):
        put_on(model, tmp_path, "a")
    assert model.attached == {}
    save_file(tensors, path)
    put_on(model, tmp_path, "a")
    torch.testing.assert_close(answer(model), bare, rtol=0, atol=0)
