"""Merging into a base and combining LoRA adapters, against the sums worked out from the adapters' own factors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from luthier.core.errors import ConflictError, InputError, MismatchError, NotFoundError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.models.attach import save_trained
from luthier.models.combine import combine, merge_into_base
from luthier.models.export import export
from luthier.models.inspect_adapter import inspect_adapter
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.store.artifacts import put, staged
from luthier.store.database import open_store
from luthier.store.lineage import lineage
from luthier.store.models import find, register

LABELS = ("billing", "delivery")
IDS = torch.tensor([[5, 9, 30, 7], [8, 6, 40, 11]])


def adapter(base: str, name: str, seed: int, labels: tuple[str, ...] = (), **options: Any) -> LoadedModel:
    """A stored random LoRA adapter."""
    store = open_store()
    model = load_model(store, base, dtype="fp32", device="cpu", labels=labels)
    torch.manual_seed(seed)
    encoder = model.architecture == "encoder"
    targets = ["query", "value"] if encoder else ["q_proj", "down_proj"]
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": targets, "init_lora_weights": False} | options)
    inner = get_peft_model(model.module.body if encoder else model.module, config)
    if encoder:
        model.module.body = inner
        torch.nn.init.normal_(model.module.head.weight)
    else:
        model.module = inner
    model.labels = labels
    keep(model, name)
    return model


def keep(model: LoadedModel, name: str, saves: str = "adapter", method: str = "lora") -> ModelRecord:
    store = open_store()
    with staged(store) as folder:
        save_trained(model, folder, {"saves": saves, "method": {"name": method, "config": {}}})
        digest, size = put(store, folder)
    meta = {"method": method, "saves": saves, "serving": {"torch": "swap", "llamacpp": "swap"}}
    return register(
        store, ModelRecord(name, "adapter", model.architecture, digest, size, base=model.base.name, meta=meta)
    )


def updates(name: str) -> dict[str, torch.Tensor]:
    """What a stored model adds to each weight of its base, in fp32."""
    store = open_store()
    record = find(store, name)
    now = dict(merge(load_model(store, name, dtype="fp32", device="cpu")).module.named_parameters())
    base = dict(load_model(store, record.base or "", dtype="fp32", device="cpu").module.named_parameters())
    return {key: (now[key] - base[key]).detach() for key in base}


def expected(weighted: dict[str, float]) -> dict[str, torch.Tensor]:
    each = [(weight, updates(name)) for name, weight in weighted.items()]
    return {key: sum(weight * found[key] for weight, found in each) for key in each[0][1]}  # type: ignore[misc]


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}])
def test_cat_is_the_exact_weighted_sum_of_other_ranks_and_targets(tiny_decoder: str, options: dict[str, Any]) -> None:
    adapter(tiny_decoder, "a", 1, **options)
    adapter(tiny_decoder, "b", 2, r=2, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 3}, **options)
    made = combine(open_store(), ["a", "b"], "ab", weights=[0.7, -1.5])
    assert made.meta["combined"] == {"names": ["a", "b"], "weights": [0.7, -1.5], "how": "cat", "rank": 7}
    for key, sought in expected({"a": 0.7, "b": -1.5}).items():
        torch.testing.assert_close(updates("ab")[key], sought, rtol=1e-4, atol=1e-6)
    assert made.kind == "adapter" and made.base == tiny_decoder and made.meta["serving"]["llamacpp"] == "swap"
    assert export("ab").meta["holds"] == "lora"


def test_svd_is_the_best_approximation_of_its_rank(tiny_decoder: str) -> None:
    adapter(tiny_decoder, "a", 1)
    adapter(tiny_decoder, "b", 2)
    store = open_store()
    sought = expected({"a": 0.5, "b": 0.5})
    combine(store, ["a", "b"], "whole", how="svd", rank=8)
    made = combine(store, ["a", "b"], "cut", how="svd")
    assert made.meta["combined"]["rank"] == 4 and made.meta["trainable_parameters"] == 2 * 4 * (64 + 96)
    whole, cut = updates("whole"), updates("cut")
    for key, sum_of_both in sought.items():
        torch.testing.assert_close(whole[key], sum_of_both, rtol=1e-4, atol=1e-5)
        if sum_of_both.any():
            left = torch.linalg.svdvals(sum_of_both)[4:].square().sum().sqrt()
            assert float((cut[key] - sum_of_both).norm()) == pytest.approx(float(left), rel=1e-3)


def test_encoders_with_equal_labels(tiny_encoder: str) -> None:
    one, other = adapter(tiny_encoder, "a", 1, LABELS), adapter(tiny_encoder, "b", 2, LABELS)
    adapter(tiny_encoder, "c", 3, ("x", "y"))
    store = open_store()
    combine(store, ["a", "b"], "ab", weights=[3, 1])
    loaded = load_model(store, "ab", dtype="fp32", device="cpu")
    head = 0.75 * one.module.head.weight + 0.25 * other.module.head.weight
    torch.testing.assert_close(loaded.module.head.weight, head)
    assert loaded.labels == LABELS
    with pytest.raises(MismatchError, match="a tells billing, delivery apart, c x, y"):
        combine(store, ["a", "c"], "ac")


def test_a_merged_base_is_a_base(tiny_decoder: str, tiny_encoder: str) -> None:
    store = open_store()
    model = adapter(tiny_decoder, "a", 1)
    made = merge_into_base(store, "a")
    assert (made.name, made.kind, made.base) == ("a-merged", "base", None)
    assert made.meta["source"] == "merged:a" and made.licence == find(store, "a").licence
    loaded = load_model(store, "a-merged", dtype="fp32", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(IDS).logits, model.module.eval()(IDS).logits, rtol=1e-5, atol=1e-5)
    assert loaded.template_digest == model.template_digest
    again = adapter("a-merged", "second", 2)  # it can be tuned again, and what is made of it loads
    with torch.no_grad():
        out = load_model(store, "second", dtype="fp32", device="cpu").module(IDS).logits
        torch.testing.assert_close(out, again.module.eval()(IDS).logits, rtol=1e-5, atol=1e-5)
    assert any(edge.relation == "merged into" for edge in lineage("a-merged", store).edges)
    adapter(tiny_encoder, "e", 3, LABELS)
    encoder = load_model(store, merge_into_base(store, "e", "plain").name, dtype="fp32", device="cpu")
    assert encoder.module.head is None and encoder.labels == ()


def test_what_cannot_be_combined(tiny_decoder: str) -> None:
    store = open_store()
    model = adapter(tiny_decoder, "a", 1)
    adapter(tiny_decoder, "b", 2)
    adapter(tiny_decoder, "dora", 3, use_dora=True)
    adapter(tiny_decoder, "wide", 4, modules_to_save=["norm"])
    model.module = model.module.unload()
    model.module.requires_grad_(False)
    model.module.model.norm.requires_grad_(True)
    keep(model, "norms", "delta", "layer_norm")
    for names, options, error, says in (
        (["a"], {}, InputError, "takes two adapters or more; got 1"),
        (["a", "a"], {}, InputError, "takes each adapter once"),
        (["a", "b"], {"weights": [1.0]}, InputError, "weights must be one for each of the 2 adapters; got 1"),
        (["a", "b"], {"weights": [float("nan"), 1]}, InputError, "must be finite numbers"),
        (["a", "b"], {"weights": [0, 0]}, InputError, "not all of them 0"),
        (["a", "b"], {"how": "mean"}, InputError, "how must be cat or svd; got 'mean'"),
        (["a", "b"], {"rank": 3}, InputError, "goes with svd"),
        (["a", "b"], {"rank": 33, "how": "svd"}, InputError, "rank must be at most 32"),
        (["a", "lost"], {}, NotFoundError, "'lost' is not known"),
        (["a", tiny_decoder], {}, UnsupportedError, "tiny-decoder is a base, not something that tuning made"),
        (["a", "dora"], {}, UnsupportedError, r"dora has magnitudes of its own.*\n.*luthier adapters merge dora"),
        (["a", "wide"], {}, UnsupportedError, "wide trained weights of the base too"),
        (["a", "norms"], {}, UnsupportedError, "norms was made by layer_norm"),
    ):
        with pytest.raises(error, match=says):
            combine(store, names, "new", **options)  # type: ignore[arg-type]
    with pytest.raises(ConflictError, match="'b' is taken by another adapter"):
        combine(store, ["a", "b"], "b")
    with pytest.raises(ConflictError, match="'a' is taken"):
        merge_into_base(store, "b", "a")


def test_adapters_of_different_bases(tiny_decoder: str) -> None:
    store = open_store()
    adapter(tiny_decoder, "a", 1)
    merge_into_base(store, "a", "other-base")
    adapter("other-base", "b", 2)
    with pytest.raises(MismatchError, match=r"a was trained on tiny-decoder \(\w{12}\), b on other-base"):
        combine(store, ["a", "b"], "ab")


def test_inspection_of_lora(tiny_decoder: str) -> None:
    adapter(tiny_decoder, "a", 1)
    found = inspect_adapter(open_store(), "a")
    assert found.parameters == 2 * 4 * (64 + 96) and found.head == 0 and found.method == "lora"
    sought = {key: float(update.norm()) for key, update in updates("a").items() if update.any()}
    assert {f"{part.name}.weight" for part in found.parts} == set(sought)
    for part in found.parts:
        assert part.update == pytest.approx(sought[f"{part.name}.weight"], rel=1e-4)
        assert part.rank == 4 and part.block in (0, 1) and part.kind in ("self_attn.q_proj", "mlp.down_proj")
    assert replace(found.parts[0], weight=2 * (found.parts[0].update or 0)).relative == 0.5


def ia3(base: str, name: str, seed: int, labels: tuple[str, ...] = (), **options: Any) -> LoadedModel:
    from luthier.core.catalog import load

    model = load_model(open_store(), base, dtype="fp32", device="cpu", labels=labels)
    entry = load("methods", "ia3")
    model = entry(model, entry.configure(options))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    keep(model, name, method="ia3")
    return model


@pytest.mark.parametrize("options", [{}, {"outputs": ["q_proj"]}])
def test_the_sum_of_ia3_adapters_is_the_sum_of_their_updates(tiny_decoder: str, options: dict[str, Any]) -> None:
    ia3(tiny_decoder, "a", 1)
    ia3(tiny_decoder, "b", 2, **options)
    made = combine(open_store(), ["a", "b"], "ab", weights=[0.7, -1.5])
    assert made.meta["combined"]["how"] == "sum" and made.meta["method"] == "ia3"
    for key, sought in expected({"a": 0.7, "b": -1.5}).items():
        torch.testing.assert_close(updates("ab")[key], sought, rtol=1e-4, atol=1e-6)
    assert inspect_adapter(open_store(), "ab").parameters == made.meta["trainable_parameters"]
    with pytest.raises(InputError, match="ranks, and \\(IA\\)3 adapters have none"):
        combine(open_store(), ["a", "b"], "c", how="svd")
    adapter(tiny_decoder, "lora", 3)
    with pytest.raises(UnsupportedError, match=r"LoRA adapters, or \(IA\)3 adapters; a was made by ia3\n.*merge a"):
        combine(open_store(), ["a", "lora"], "c")


def test_ia3_adapters_of_encoders_average_their_heads(tiny_encoder: str) -> None:
    one, other = ia3(tiny_encoder, "a", 1, LABELS), ia3(tiny_encoder, "b", 2, LABELS)
    combine(open_store(), ["a", "b"], "ab", weights=[3, 1])
    loaded = load_model(open_store(), "ab", dtype="fp32", device="cpu")
    torch.testing.assert_close(
        loaded.module.head.weight, 0.75 * one.module.head.weight + 0.25 * other.module.head.weight
    )
    for key, sought in expected({"a": 3, "b": 1}).items():
        if key.startswith("body."):
            torch.testing.assert_close(updates("ab")[key], sought, rtol=1e-4, atol=1e-6)


def test_what_is_no_sum_says_what_can_be_done(tiny_decoder: str) -> None:
    from tests.models.test_inspect_adapter import tuned

    adapter(tiny_decoder, "a", 1)
    tuned(tiny_decoder, "between", "pfeiffer_adapter")
    tuned(tiny_decoder, "soft", "prompt")
    with pytest.raises(UnsupportedError, match=r"between was made by pfeiffer_adapter\n.*adapter_fusion"):
        combine(open_store(), ["a", "between"], "x")
    with pytest.raises(UnsupportedError, match=r"soft was made by prompt\n.*luthier serve"):
        combine(open_store(), ["a", "soft"], "x")
