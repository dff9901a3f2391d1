"""Deltas: exactly what was trained, put into a base and taken out of it without a trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from luthier.core.errors import DataError, InputError, MismatchError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.models.attach import attach, detach, save_trained, select
from luthier.models.delta import FILE, parameters, read_changes, write_changes
from luthier.models.export import export, gguf_file
from luthier.models.gguf import check_gguf
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.store.artifacts import put, staged
from luthier.store.database import open_store
from luthier.store.models import register

IDS = torch.tensor([[5, 9, 30, 7], [8, 6, 40, 11]])
NORMS = ["model.layers.0.input_layernorm.weight", "model.norm.weight"]


def trained(base: str, names: list[str], seed: int = 0, dtype: str = "fp32") -> LoadedModel:
    """The base with some parameters changed, as a selective method leaves it."""
    model = load_model(open_store(), base, dtype=dtype, device="cpu")
    model.module.requires_grad_(False)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name in names:
            parameter = model.module.get_parameter(name).requires_grad_(True)
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def kept(model: LoadedModel, name: str, saves: str = "delta") -> ModelRecord:
    store = open_store()
    with staged(store) as folder:
        save_trained(model, folder, {"saves": saves})
        digest, size = put(store, folder)
    meta = {"saves": saves, "template_digest": model.template_digest}
    return register(
        store, ModelRecord(name, "adapter", model.architecture, digest, size, base=model.base.name, meta=meta)
    )


@torch.no_grad()
def logits(model: LoadedModel) -> torch.Tensor:
    return model.module.eval()(IDS).logits


def test_the_file_holds_the_trained_tensors_exactly(tiny_decoder: str, tmp_path: Path) -> None:
    model = trained(tiny_decoder, NORMS, dtype="bf16")
    write_changes(model.module, tmp_path / FILE)
    tensors = load_file(tmp_path / FILE)
    assert sorted(tensors) == NORMS
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, model.module.get_parameter(name))


def test_deltas_and_adapters_share_a_base(tiny_decoder: str) -> None:
    store = open_store()
    bare = load_model(store, tiny_decoder, dtype="fp32")
    expected = {None: logits(bare)}
    plan = {
        "norms": NORMS,
        "projection": ["model.layers.1.self_attn.q_proj.weight", *NORMS],
        "table": ["lm_head.weight"],
    }
    records = {}
    for seed, (name, names) in enumerate(plan.items()):
        model = trained(tiny_decoder, names, seed)
        records[name], expected[name] = kept(model, name), logits(model)
    lora = load_model(store, tiny_decoder, dtype="fp32")
    lora.module = get_peft_model(lora.module, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    records["lora"], expected["lora"] = kept(lora, "lora", "adapter"), logits(lora)

    base = load_model(store, tiny_decoder, dtype="fp32")
    weights = {name: p.data_ptr() for name, p in base.module.named_parameters()}
    for name in ("norms", "lora", "projection", "table"):  # the LoRA wraps a layer that a later delta changes
        attach(base, records[name], name)
        torch.testing.assert_close(logits(base), expected[None], rtol=0, atol=0)
    for name in ("projection", "lora", "table", None, "norms", "projection", "lora", None, "table"):
        select(base, name)
        torch.testing.assert_close(logits(base), expected[name], rtol=0, atol=0)
    attach(base, records["norms"], "again")  # while another one is in
    torch.testing.assert_close(logits(base), expected["table"], rtol=0, atol=0)
    detach(base, "table")
    torch.testing.assert_close(logits(base), expected[None], rtol=0, atol=0)
    for name in ("norms", "projection", "again", "lora"):
        detach(base, name)
    assert {name: p.data_ptr() for name, p in base.module.named_parameters()} == weights  # not even copied
    assert all(torch.equal(p, bare.module.get_parameter(name)) for name, p in base.module.named_parameters())


def test_merging_a_delta_gives_whole_weights(tiny_decoder: str) -> None:
    store = open_store()
    model = trained(tiny_decoder, NORMS)
    record = kept(model, "norms")
    other = load_model(store, tiny_decoder, dtype="fp32")
    other.module = get_peft_model(other.module, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    beside = kept(other, "lora", "adapter")
    loaded = load_model(store, "norms", dtype="fp32")
    attach(loaded, beside, "lora")
    whole = merge(loaded)
    assert type(whole.module).__name__ == "LlamaForCausalLM"
    assert whole.attached == {} and whole.selected is None
    torch.testing.assert_close(logits(whole), logits(model), rtol=0, atol=0)
    second = merge(load_model(store, record, dtype="fp32"))
    second.base = record
    second.module.requires_grad_(False)
    with torch.no_grad():
        second.module.model.norm.weight.requires_grad_(True).mul_(1.5)
    kept(second, "second")
    torch.testing.assert_close(
        logits(load_model(store, "second", dtype="fp32")), logits(second), rtol=0, atol=0
    )  # a delta on a delta


def test_export_of_a_delta_is_whole_weights(tiny_decoder: str) -> None:
    store = open_store()
    model = trained(tiny_decoder, NORMS)
    record = kept(model, "norms")
    made = export("norms", type="F32")
    assert (made.meta["holds"], made.meta["target"]) == ("model", "norms")
    found = check_gguf(gguf_file(store, made)).read("output_norm.weight")
    np.testing.assert_array_equal(found, model.module.model.norm.weight.detach().numpy())
    with pytest.raises(UnsupportedError, match=r"holds no PEFT adapter\n.*--merge"):
        export("norms", merge=False)
    assert record.meta["saves"] == "delta"


def test_names_inside_adapters_are_the_plain_ones(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="fp32")
    plain = dict(model.module.named_parameters())
    wrapped = get_peft_model(model.module, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    found = parameters(wrapped)
    assert all(found[name] is parameter for name, parameter in plain.items())


def test_what_does_not_fit_is_refused(tiny_decoder: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = load_model(open_store(), tiny_decoder, dtype="fp32")
    path = tmp_path / FILE

    def read() -> None:
        read_changes(path, model.module, device="cpu", dtype=torch.float32, base="tiny-decoder")

    for tensors, says in (
        (
            {"model.nrom.weight": torch.zeros(32)},
            r"does not fit tiny-decoder: it has no parameter 'model\.nrom\.weight'",
        ),
        ({"model.norm.weight": torch.zeros(31)}, r"has the shape \(31,\) in the file and \(32,\) there"),
        ({"model.norm.weight#values": torch.zeros(2)}, "has values without their places"),
        (
            {"model.norm.weight#values": torch.zeros(1), "model.norm.weight#places": torch.tensor([32])},
            "has 32 entries; the file changes entry 32",
        ),
        ({}, "holds no tensors"),
    ):
        save_file(tensors, path)
        with pytest.raises(MismatchError, match=says):
            read()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=FILE):
        read()


def test_nothing_trained_is_refused(tiny_decoder: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs parameters that were trained"):
        save_trained(trained(tiny_decoder, []), tmp_path, {"saves": "delta"})
    assert not (tmp_path / "luthier.json").exists()


def test_single_entries_are_put_in_and_taken_out(tiny_decoder: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = load_model(open_store(), tiny_decoder, dtype="fp32")
    name = "model.layers.0.mlp.up_proj.weight"
    before = model.module.get_parameter(name).detach().clone()
    places, values = torch.tensor([0, 33, 2047]), torch.tensor([1.5, -2.0, 0.25])
    save_file({f"{name}#places": places, f"{name}#values": values}, tmp_path / FILE)
    changes = read_changes(tmp_path / FILE, model.module, device="cpu", dtype=torch.float32, base="b")
    assert not changes.inside
    changes.put_in()
    changes.put_in()
    expected = before.clone()
    expected[0, 0], expected[1, 1], expected[63, 31] = 1.5, -2.0, 0.25
    assert changes.inside and torch.equal(model.module.get_parameter(name), expected)
    changes.take_out()
    assert torch.equal(model.module.get_parameter(name), before)
