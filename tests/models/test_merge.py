"""What merging must not touch; that it adds the adapter is shown with adapters from disk in ``test_attach``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from sqlalchemy import update

from luthier.core.catalog import load, names
from luthier.core.errors import InputError, NotFoundError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.methods.lora import Config, build
from luthier.models.attach import attach, detach, save_trained, select
from luthier.models.combine import merge_into_base
from luthier.models.decode import causal_model, hidden_states, logits
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import folds, merge, merged, unmerge
from luthier.store.artifacts import put
from luthier.store.database import models, open_store
from luthier.store.models import find, register, remove, rename

IDS = torch.tensor([[1, 5, 9, 2]])


@torch.no_grad()
def test_dora_and_plain_lora_merge_to_the_same_answers(tiny_decoder: str) -> None:
    for dora in (False, True):
        model = load_model(open_store(), tiny_decoder, dtype="fp32")
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, use_dora=dora)
        model.module = get_peft_model(model.module, config).eval()
        expected = model.module(IDS).logits
        plain = merge(model).module
        torch.testing.assert_close(plain(IDS).logits, expected, atol=1e-5, rtol=1e-5)
        assert type(plain).__name__ == "LlamaForCausalLM"
        assert plain.lm_head.weight is plain.model.embed_tokens.weight  # still tied


def test_a_base_comes_back_as_it_is(tiny_encoder: str) -> None:
    model = load_model(open_store(), tiny_encoder)
    assert merge(model) is model


def test_soft_prompts_cannot_be_merged(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="fp32")
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2)
    model.module = get_peft_model(model.module, config)
    with pytest.raises(UnsupportedError, match="is a soft prompt"):
        merge(model)


@pytest.mark.parametrize("method", names("methods"))
def test_what_is_known_to_fold_before_training(method: str) -> None:
    """Soft prompts and networks beside the weights do not; methods for encoders alone say so themselves."""
    entry = load("methods", method).module
    record = ModelRecord("m", "adapter", "encoder", "0", base="b", meta={"method": method})
    if "decoder" in entry.SERVING:
        assert folds(record) == (entry.SERVING["decoder"]["llamacpp"] != "no")
    else:
        assert folds(record) == (entry.SAVES == "head")
    if entry.FAMILY == "soft_prompt":
        assert not folds(record)


def test_rotary_frequencies_stay_in_fp32_when_a_model_in_bf16_is_merged(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="bf16", device="cpu")
    before = {name: buffer.clone() for name, buffer in model.module.named_buffers()}
    plain = merge(build(model, Config(rank=4))).module
    after = dict(plain.named_buffers())
    assert before.keys() == after.keys() and any("inv_freq" in name for name in before)
    assert all(torch.equal(after[name], before[name]) and after[name].dtype == before[name].dtype for name in before)
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}


MERGED = {
    "lora": {"rank": 4},
    "dora": {},
    "ia3": {},
    "adalora": {},
    "loha": {},
    "lokr": {},
    "vera": {"rank": 8},
    "oft": {"block_size": 8},
    "lora_and_embeddings": {},
    "layer_norm": {},
}


def tuned(base: str, method: str, folder: Path, dtype: str, options: dict[str, Any]) -> None:
    """Save a random adapter of ``method``."""
    model = load_model(open_store(), base, dtype=dtype, device="cpu")
    model.module.requires_grad_(False)
    entry = load("methods", method)
    torch.manual_seed(0)
    model = entry(model, entry.configure(options))
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    save_trained(model, folder, {"saves": entry.module.SAVES, "method": {"name": method, "config": {}}})


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "light"), [*((m, False) for m in MERGED), ("lora", True), ("ia3", True)])
def test_merged_in_memory_and_taken_out_bit_for_bit(
    method: str, light: bool, dtype: str, tiny_decoder: str, tmp_path: Path
) -> None:
    tuned(tiny_decoder, method, tmp_path, dtype, MERGED[method])
    model = load_model(open_store(), tiny_decoder, dtype=dtype, device="cpu")
    own = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    where = {name: p.data_ptr() for name, p in model.module.named_parameters()}
    attach(model, ModelRecord("a", "adapter", "decoder", ""), "a", folder=tmp_path, light=light)
    with torch.no_grad():
        bare = model.module(IDS).logits
        select(model, "a")
        expected = model.module(IDS).logits
        near = {"rtol": 1e-4, "atol": 1e-5} if dtype == "fp32" else {"rtol": 5e-2, "atol": 2e-2}
        assert not torch.equal(bare, expected)
        for _ in range(2):
            with merged(model) as live:
                assert live is model
                torch.testing.assert_close(model.module(IDS).logits, expected, **near)
                if method not in ("lora_and_embeddings", "layer_norm"):  # the adapter's layers add nothing now
                    assert not torch.equal(_plain_weight(model), own["model.layers.0.self_attn.k_proj.weight"])
                    assert _plain_weight(model).dtype == model.dtype
            torch.testing.assert_close(model.module(IDS).logits, expected, rtol=0, atol=0)
        select(model, None)
        torch.testing.assert_close(model.module(IDS).logits, bare, rtol=0, atol=0)
    detach(model, "a")
    after = model.module.state_dict()
    assert after.keys() == own.keys() and all(torch.equal(after[name], own[name]) for name in own)
    assert {name: p.data_ptr() for name, p in model.module.named_parameters()} == where


def _plain_weight(model: LoadedModel) -> torch.Tensor:
    layer = causal_model(model.module).model.layers[0].self_attn.k_proj
    weight: torch.Tensor = (layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer).weight
    return weight


def test_an_error_within_the_block_takes_the_adapter_out_too(tiny_decoder: str, tmp_path: Path) -> None:
    for light in (False, True):
        tuned(tiny_decoder, "lora", tmp_path / str(light), "fp32", {})
        model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
        own = _plain_weight(model).clone()
        attach(model, ModelRecord("a", "adapter", "decoder", ""), "a", folder=tmp_path / str(light), light=light)
        select(model, "a")
        for error in (KeyError, NotImplementedError):  # the second is also what PEFT raises where it cannot merge
            with pytest.raises(error, match="of the caller"), merged(model):
                raise error("of the caller")
            assert torch.equal(_plain_weight(model), own)


@pytest.mark.parametrize(("method", "words"), [("adapter", "cannot be merged"), ("prefix", "soft prompt cannot")])
def test_what_cannot_be_merged_in_memory(method: str, words: str, tiny_decoder: str, tmp_path: Path) -> None:
    tuned(tiny_decoder, method, tmp_path, "fp32", {})
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    attach(model, ModelRecord("a", "adapter", "decoder", ""), "a", folder=tmp_path)
    select(model, "a")
    with torch.no_grad():
        expected = logits(model.module, hidden_states(model.module, IDS))
        with pytest.raises(UnsupportedError, match=words), merged(model):
            pass
        torch.testing.assert_close(logits(model.module, hidden_states(model.module, IDS)), expected, rtol=0, atol=0)


def test_an_adapter_with_broken_numbers_is_not_merged(tiny_decoder: str, tmp_path: Path) -> None:
    tuned(tiny_decoder, "lora", tmp_path, "fp32", {})
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file({key: tensor * float("nan") for key, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    own = _plain_weight(model).clone()
    attach(model, ModelRecord("a", "adapter", "decoder", ""), "a", folder=tmp_path)
    select(model, "a")
    with pytest.raises(UnsupportedError, match=r"of type LORA cannot be merged.*NaN"), merged(model):
        pass
    assert torch.equal(_plain_weight(model), own)
    with pytest.raises(UnsupportedError, match=r"of type LORA cannot be merged.*NaN"):
        merge(model)


def test_a_merged_base_is_taken_apart_into_what_it_was_made_of(
    tiny_decoder: str, tiny_encoder: str, tmp_path: Path
) -> None:
    store = open_store()
    for number, base in enumerate((tiny_decoder, tiny_encoder)):
        tuned(base, "lora", tmp_path / base, "fp32", {})
        digest, size = put(store, tmp_path / base)
        record = find(store, base)
        register(store, ModelRecord(f"desk{number}", "adapter", record.architecture, digest, size, base=base))
        made = merge_into_base(store, f"desk{number}", f"whole{number}")
        rename(store, f"desk{number}", f"shop{number}")
        apart = unmerge(store, f"whole{number}")
        assert (apart.merged, apart.base) == (made, record)
        assert (apart.adapter.name, apart.adapter.digest, apart.difference) == (f"shop{number}", digest, 0.0)
    with pytest.raises(InputError, match="tiny-decoder is not a merged base"):
        unmerge(store, tiny_decoder)
    register(store, ModelRecord("other", "base", "decoder", find(store, tiny_decoder).digest, 1))
    with store.write() as connection:  # weights that are not the sum any more
        connection.execute(
            update(models).where(models.c.name == "whole0").values(digest=find(store, tiny_decoder).digest)
        )
    assert unmerge(store, "whole0").difference > 1e-3
    remove(store, "shop1")
    with pytest.raises(NotFoundError, match=r"whole1 was made of shop1.*no longer"):
        unmerge(store, "whole1")
