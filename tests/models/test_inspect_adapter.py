"""What an inspection counts and measures, whatever the method, and its picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models.test_combine import adapter, keep

from luthier.core.catalog import load
from luthier.core.errors import NotFoundError, UnsupportedError
from luthier.models.inspect_adapter import Inspection, Part, draw, inspect_adapter, short_kinds
from luthier.models.load import load_model
from luthier.store.database import open_store
from luthier.store.models import remove


def changed(base: str, name: str, method: str, labels: tuple[str, ...] = (), **options: object) -> dict[str, float]:
    """A stored model of a selective method with every trained tensor changed; returns the norms of the changes by parameter."""
    model = load_model(open_store(), base, dtype="fp32", device="cpu", labels=labels)
    entry = load("methods", method)
    model = entry(model, entry.configure(options))
    torch.manual_seed(0)
    norms = {}
    inner = model.module if model.architecture == "decoder" else model.module.body
    with torch.no_grad():
        for key, parameter in inner.named_parameters():
            if parameter.requires_grad:
                step = torch.randn_like(parameter) * 0.1
                parameter.add_(step)
                norms[key] = float(step.norm())
    keep(model, name, entry.module.SAVES, method)
    return norms


def test_a_delta(tiny_decoder: str, tmp_path: Path) -> None:
    norms = changed(tiny_decoder, "norms", "layer_norm")
    found = inspect_adapter(open_store(), "norms")
    assert (found.method, found.saves, found.parameters) == ("layer_norm", "delta", 5 * 32)
    for part in found.parts:
        assert part.update == pytest.approx(norms[f"{part.name}.weight"], rel=1e-4)
        assert part.weight == pytest.approx(32**0.5, rel=1e-4)  # gains begin at one
    assert [part.block for part in found.parts] == [0, 0, 1, 1, None]
    assert found.grid()[:2] == ([0, 1], ["input_layernorm", "post_attention_layernorm"])
    draw(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_biases_and_weights_of_a_module_are_one_part(tiny_encoder: str) -> None:
    norms = changed(tiny_encoder, "e", "layer_norm", ("a", "b"))
    found = inspect_adapter(open_store(), "e")
    assert found.head == 66 and found.parameters == 66 + 5 * 64
    part = next(part for part in found.parts if part.name == "embeddings.LayerNorm")
    both = (norms["embeddings.LayerNorm.weight"] ** 2 + norms["embeddings.LayerNorm.bias"] ** 2) ** 0.5
    assert part.update == pytest.approx(both, rel=1e-4) and part.block is None


def test_whole_weights_and_a_head(tiny_decoder: str, tiny_encoder: str) -> None:
    store = open_store()
    norms = changed(tiny_decoder, "whole", "full")
    found = inspect_adapter(store, "whole")
    assert {f"{part.name}.weight" for part in found.parts} == set(norms)
    assert all(part.update == pytest.approx(norms[f"{part.name}.weight"], rel=1e-3) for part in found.parts)
    changed(tiny_encoder, "probe", "linear_probe", ("a", "b"))
    probe = inspect_adapter(store, "probe")
    assert (probe.parts, probe.parameters, probe.head) == ((), 66, 66)
    with pytest.raises(UnsupportedError, match="trained a head alone"):
        draw(probe, Path("never.png"))


def test_a_whole_model_without_its_base(tiny_decoder: str) -> None:
    store = open_store()
    changed(tiny_decoder, "whole", "full")
    from dataclasses import replace

    from luthier.store.models import find, register

    register(store, replace(find(store, "whole"), base=None), replace=True)
    remove(store, tiny_decoder)
    with pytest.raises(NotFoundError, match="its base tiny-decoder to compare it with is not here"):
        inspect_adapter(store, "whole")


def test_a_module_trained_whole_beside_lora(tiny_decoder: str) -> None:
    adapter(tiny_decoder, "a", 1, modules_to_save=["norm"])
    found = inspect_adapter(open_store(), "a")
    assert found.parameters == sum(part.parameters for part in found.parts)
    assert any(part.name.endswith("norm") and part.parameters == 32 and part.update == 0.0 for part in found.parts)


def test_only_what_tuning_made(tiny_decoder: str) -> None:
    with pytest.raises(UnsupportedError, match=r"tiny-decoder is a base.*\n.*luthier adapters"):
        inspect_adapter(open_store(), tiny_decoder)
    with pytest.raises(NotFoundError):
        inspect_adapter(open_store(), "lost")


def test_names_across_the_picture_are_short_and_apart() -> None:
    assert short_kinds(["self_attn.q_proj", "mlp.up_proj"]) == ["q_proj", "up_proj"]
    assert short_kinds(["attention.output.dense", "output.dense", "a.query"]) == [
        "attention.output.dense",
        "output.dense",
        "query",
    ]


def test_parts_without_a_merged_weight_stay_out_of_the_grid() -> None:
    found = Inspection(
        "n", "b", "decoder", "m", "adapter", 1, 0, (Part("layers.0.adapter", 5), Part("h.1.x", 2, 1.0, 4.0))
    )
    assert found.grid() == ([1], ["x"], {(1, "x"): 0.25})
    assert found.as_dict()["parts"][1]["relative"] == 0.25 and found.as_dict()["parameters"] == 7


def tuned(
    base: str, name: str, method: str, labels: tuple[str, ...] = (), **options: object
) -> dict[str, torch.Tensor]:
    """A stored adapter of a method with random parameters; returns the tensors of its file."""
    from luthier.models.weights import read_tensors
    from luthier.store.artifacts import path_of
    from luthier.store.models import find

    model = load_model(open_store(), base, dtype="fp32", device="cpu", labels=labels)
    entry = load("methods", method)
    model = entry(model, entry.configure(options))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    keep(model, name, "adapter", method)
    return read_tensors(path_of(open_store(), find(open_store(), name).digest) / "adapter_model.safetensors")


def test_adapters_between_layers_have_the_norm_of_their_own_parameters(tiny_decoder: str, tmp_path: Path) -> None:
    tensors = tuned(tiny_decoder, "a", "pfeiffer_adapter", reduction=8)
    found = inspect_adapter(open_store(), "a")
    blocks, kinds, values = found.grid()
    assert (found.measure, found.along, blocks, kinds) == ("norm", "block", [0, 1], ["mlp.down_proj"])
    assert found.parameters == sum(tensor.numel() for tensor in tensors.values())
    for block in blocks:
        own = [t.square().sum() for key, t in tensors.items() if f"layers.{block}." in key]
        assert values[block, "mlp.down_proj"] == pytest.approx(float(sum(own)) ** 0.5, rel=1e-5)  # type: ignore[arg-type]
    draw(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_a_prefix_has_keys_and_values_in_every_layer(tiny_decoder: str) -> None:
    table = tuned(tiny_decoder, "p", "prefix")["prompt_embeddings"]
    found = inspect_adapter(open_store(), "p")
    blocks, kinds, values = found.grid()
    assert (blocks, kinds) == ([0, 1], ["keys", "values"])
    width = table.shape[1] // 4
    for block in blocks:
        for place, kind in enumerate(kinds):
            own = table[:, (2 * block + place) * width :][:, :width]
            assert values[block, kind] == pytest.approx(float(own.norm()), rel=1e-5)
    assert found.parameters == table.numel()


def test_a_prompt_has_virtual_tokens(tiny_decoder: str, tmp_path: Path) -> None:
    table = tuned(tiny_decoder, "p", "prompt")["prompt_embeddings"]
    found = inspect_adapter(open_store(), "p")
    blocks, kinds, values = found.grid()
    assert (found.along, blocks, kinds) == ("virtual token", list(range(len(table))), ["embedding"])
    assert values[3, "embedding"] == pytest.approx(float(table[3].norm()), rel=1e-5)
    draw(found, tmp_path / "picture.png")


def test_two_stacks_of_blocks_are_kept_apart() -> None:
    parts = (Part("encoder.block.0.layer.0.q", 5, 1.0, 2.0), Part("decoder.block.0.layer.0.q", 5, 1.0, 4.0))
    found = Inspection("n", "b", "encoder-decoder", "m", "adapter", 1, 0, parts)
    assert found.grid() == (
        [0],
        ["encoder.layer.0.q", "decoder.layer.0.q"],
        {(0, "encoder.layer.0.q"): 0.5, (0, "decoder.layer.0.q"): 0.25},
    )
