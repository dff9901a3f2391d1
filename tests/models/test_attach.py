"""Adapters on disk and in memory, on tiny models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from luthier.core.errors import DataError, InputError, MismatchError, NotFoundError, UnsupportedError
from luthier.core.message import user
from luthier.core.model import ModelRecord
from luthier.models.attach import attach, detach, load_trained, read_manifest, save_trained, select
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.store.artifacts import path_of, put, staged
from luthier.store.database import open_store
from luthier.store.models import find, register

TARGETS = {"decoder": ["q_proj", "v_proj", "down_proj"], "encoder": ["query", "value"]}
LABELS = ("billing", "delivery", "lessons")


def tuned(
    base: str, seed: int, *, saves: str = "adapter", labels: tuple[str, ...] = (), dtype: str = "fp32"
) -> LoadedModel:
    """A base with a random adapter, new weights or a random head, as training leaves it."""
    model = load_model(open_store(), base, dtype=dtype, labels=labels)
    torch.manual_seed(seed)
    inner = model.module if model.architecture == "decoder" else model.module.body
    if saves == "adapter":
        config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[model.architecture], init_lora_weights=False)
        inner = get_peft_model(inner, config, autocast_adapter_dtype=False)
        if model.architecture == "decoder":
            model.module = inner
        else:
            model.module.body = inner
    elif saves == "weights":
        with torch.no_grad():
            for parameter in inner.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    if model.architecture == "encoder" and labels:
        torch.nn.init.normal_(model.module.head.weight)
    model.module.eval()
    return model


def store_trained(model: LoadedModel, name: str, saves: str = "adapter", **manifest: Any) -> ModelRecord:
    store = open_store()
    with staged(store) as folder:
        save_trained(model, folder, {"saves": saves, "method": {"name": "lora", "config": {}}, **manifest})
        digest, size = put(store, folder)
    return register(store, ModelRecord(name, "adapter", model.architecture, digest, size, base=model.base.name))


@torch.no_grad()
def answer(model: LoadedModel) -> torch.Tensor:
    if model.renderer is not None:
        ids = torch.tensor([model.renderer.prompt_ids(user("Where is my parcel?"))])
        return model.module(ids).logits
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    mask = (ids != 0).long()
    return model.module(ids, mask) if model.module.head is not None else model.module.pooled(ids, mask)


@pytest.mark.parametrize("saves", ["adapter", "weights"])
def test_a_decoder_comes_back_as_it_was(tiny_decoder: str, saves: str) -> None:
    model = tuned(tiny_decoder, 1, saves=saves)
    record = store_trained(model, "mine", saves, prompt={"instruction": "x"}, run_id="run_1")
    loaded = load_model(open_store(), "mine", dtype="fp32")
    torch.testing.assert_close(answer(loaded), answer(model), atol=0, rtol=0)
    assert loaded.record == record and loaded.base.name == tiny_decoder
    manifest = read_manifest(loaded.folder)
    assert manifest["template_digest"] == loaded.template_digest
    assert manifest["base"] == {"name": tiny_decoder, "digest": loaded.base.digest}
    assert (manifest["run_id"], manifest["dtype"]) == ("run_1", "float32")


@pytest.mark.parametrize("saves", ["adapter", "weights", "head"])
def test_an_encoder_comes_back_as_it_was(tiny_encoder: str, saves: str) -> None:
    model = tuned(tiny_encoder, 2, saves=saves, labels=LABELS)
    store_trained(model, "mine", saves)
    loaded = load_model(open_store(), "mine", dtype="fp32")
    torch.testing.assert_close(answer(loaded), answer(model), atol=0, rtol=0)
    assert loaded.labels == LABELS


def test_peft_itself_reads_a_saved_adapter(tiny_decoder: str, tiny_encoder: str) -> None:
    for base, labels in ((tiny_decoder, ()), (tiny_encoder, LABELS)):
        model = tuned(base, 3, labels=labels)
        record = store_trained(model, f"{base}-a", "adapter")
        plain = load_model(open_store(), base, dtype="fp32")
        folder = str(path_of(open_store(), record.digest))
        if plain.architecture == "decoder":
            plain.module = PeftModel.from_pretrained(plain.module, folder).eval()
        else:
            plain.module.body = PeftModel.from_pretrained(plain.module.body, folder).eval()
            plain.module.head = model.module.head
        torch.testing.assert_close(answer(plain), answer(model), atol=0, rtol=0)
        assert json.loads((Path(folder) / "adapter_config.json").read_text())["base_model_name_or_path"] == base


def test_several_adapters_share_a_decoder(tiny_decoder: str) -> None:
    store = open_store()
    bare = load_model(store, tiny_decoder, dtype="fp32")
    expected = {None: answer(bare)}
    for seed in (1, 2, 3):
        model = tuned(tiny_decoder, seed)
        store_trained(model, f"a{seed}", "adapter")
        expected[f"a{seed}"] = answer(model)
    base = load_model(store, tiny_decoder, dtype="fp32")
    embeddings = base.module.get_input_embeddings().weight.data_ptr()
    for seed in (1, 2, 3):
        attach(base, find(store, f"a{seed}"), f"a{seed}")
        torch.testing.assert_close(answer(base), expected[None], atol=0, rtol=0)
    for name in ("a1", "a3", None, "a2", "a1", None):
        select(base, name)
        torch.testing.assert_close(answer(base), expected[name], atol=0, rtol=0)
    assert base.module.get_input_embeddings().weight.data_ptr() == embeddings
    select(base, "a2")
    detach(base, "a1")
    detach(base, "a1")
    torch.testing.assert_close(answer(base), expected["a2"], atol=0, rtol=0)
    detach(base, "a2")
    torch.testing.assert_close(answer(base), expected[None], atol=0, rtol=0)
    attach(base, find(store, "a1"), "again")
    select(base, "again")
    torch.testing.assert_close(answer(base), expected["a1"], atol=0, rtol=0)
    with pytest.raises(NotFoundError, match="'a9' is not attached; attached: a3, again"):
        select(base, "a9")


def test_adapters_and_probes_share_an_encoder(tiny_encoder: str) -> None:
    store = open_store()
    bare = load_model(store, tiny_encoder, dtype="fp32")
    expected = {None: answer(bare)}
    plan = {"a": ("adapter", LABELS), "b": ("adapter", ("x", "y")), "p": ("head", LABELS)}
    for seed, (name, (saves, labels)) in enumerate(plan.items()):
        model = tuned(tiny_encoder, seed, saves=saves, labels=labels)
        store_trained(model, name, saves)
        expected[name] = answer(model)
    base = load_model(store, tiny_encoder, dtype="fp32")
    for name in plan:
        attach(base, find(store, name), name)
    for name in ("a", "p", "b", None, "p", "a"):
        select(base, name)
        torch.testing.assert_close(answer(base), expected[name], atol=0, rtol=0)
        assert base.labels == (plan[name][1] if name else ())


def test_whole_weights_cannot_share_a_base(tiny_decoder: str) -> None:
    record = store_trained(tuned(tiny_decoder, 1, saves="weights"), "full", "weights")
    with pytest.raises(UnsupportedError, match="cannot share"):
        attach(load_model(open_store(), tiny_decoder), record, "full")


def test_merging_changes_nothing_but_the_modules(tiny_decoder: str, tiny_encoder: str) -> None:
    for base, labels in ((tiny_decoder, ()), (tiny_encoder, LABELS)):
        model = tuned(base, 4, labels=labels)
        store_trained(model, f"{base}-m", "adapter")
        expected = answer(model)
        merged = merge(load_model(open_store(), f"{base}-m", dtype="fp32"))
        torch.testing.assert_close(answer(merged), expected, atol=1e-5, rtol=1e-5)
        assert not any("lora" in name for name, _ in merged.module.named_parameters())
        assert merged.record.name == f"{base}-m"


def test_merging_rounds_once(tiny_decoder: str) -> None:
    """In bf16 the merged weight is the exact sum, rounded; not a sum of rounded products."""
    model = tuned(tiny_decoder, 5, dtype="bf16")
    layer = model.module.base_model.model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    exact = layer.base_layer.weight.double() + 2.0 * (b @ a)
    merged = merge(model).module.model.layers[0].self_attn.q_proj.weight
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged.double(), exact.to(torch.bfloat16).double(), atol=1e-6, rtol=2**-8)
    assert merge(merge(load_model(open_store(), tiny_decoder))).record.name == tiny_decoder


def test_an_adapter_of_an_adapter(tiny_decoder: str) -> None:
    """Tuning may start from a tuned model: its base is then merged first."""
    store = open_store()
    first = store_trained(tuned(tiny_decoder, 1), "first", "adapter")
    start = merge(load_model(store, "first", dtype="fp32"))
    start.base = first
    config = LoraConfig(r=2, target_modules=TARGETS["decoder"], init_lora_weights=False)
    start.module = get_peft_model(start.module, config).eval()
    store_trained(start, "second", "adapter")
    loaded = load_model(store, "second", dtype="fp32")
    torch.testing.assert_close(answer(loaded), answer(start), atol=1e-5, rtol=1e-5)


def test_another_base_is_refused(tiny_decoder: str) -> None:
    store = open_store()
    record = store_trained(tuned(tiny_decoder, 1), "mine", "adapter")
    base = find(store, tiny_decoder)
    full = store_trained(tuned(tiny_decoder, 2, saves="weights"), "other", "weights")
    register(store, replace(base, digest=full.digest), replace=True)
    with pytest.raises(MismatchError, match=r"trained on tiny-decoder.*\n.*tune again"):
        load_trained(store, record)


def test_another_template_is_refused(tiny_decoder: str) -> None:
    store = open_store()
    record = store_trained(tuned(tiny_decoder, 1), "mine", "adapter", template_digest="0" * 64)
    with pytest.raises(MismatchError, match="000000000000"):
        load_trained(store, record)


@pytest.mark.parametrize(
    "name", ["luthier.json", "adapter_config.json", "adapter_model.safetensors", "head.safetensors"]
)
def test_damaged_files_are_named(tiny_encoder: str, name: str) -> None:
    store = open_store()
    record = store_trained(tuned(tiny_encoder, 1, labels=LABELS), "mine", "adapter")
    path = path_of(store, record.digest) / name
    path.write_bytes(b"\x7f" * path.stat().st_size)  # of the right size, so that only reading finds it
    with pytest.raises(DataError, match=name):
        load_trained(store, record)


def test_files_that_do_not_fit_one_another(tiny_encoder: str, tmp_path: Path) -> None:
    model = tuned(tiny_encoder, 1, labels=LABELS)
    save_trained(model, tmp_path, {"saves": "adapter"})
    base = load_model(open_store(), tiny_encoder, dtype="fp32")
    before = answer(base)
    record = ModelRecord("mine", "adapter", "encoder", "")
    text = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(text.replace('"r": 4', '"r": 3'))
    with pytest.raises(MismatchError, match="adapter_model"):
        attach(base, record, "mine", folder=tmp_path)
    (tmp_path / "adapter_config.json").write_text(text.replace('"value"', '"key"'))
    with pytest.raises(MismatchError, match="does not fit"):
        attach(base, record, "mine", folder=tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    manifest = json.loads((tmp_path / "luthier.json").read_text())
    (tmp_path / "luthier.json").write_text(json.dumps({**manifest, "labels": ["one"]}))
    with pytest.raises(MismatchError, match="head"):
        attach(base, record, "mine", folder=tmp_path)
    (tmp_path / "luthier.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(DataError, match="format must be 1; got 2"):
        read_manifest(tmp_path)
    assert base.attached == {}  # a failure leaves the base as it was
    torch.testing.assert_close(answer(base), before, atol=0, rtol=0)
    (tmp_path / "luthier.json").write_text(json.dumps(manifest))
    attach(base, record, "mine", folder=tmp_path)
    select(base, "mine")
    torch.testing.assert_close(answer(base), answer(model), atol=0, rtol=0)


def test_what_saving_refuses(tiny_decoder: str, tmp_path: Path) -> None:
    model = load_model(open_store(), tiny_decoder)
    with pytest.raises(InputError, match="saves must be one of adapter, weights, head, delta; got None"):
        save_trained(model, tmp_path, {})
    with pytest.raises(InputError, match="encoder"):
        save_trained(model, tmp_path, {"saves": "head"})
    with pytest.raises(InputError, match="it has none"):
        save_trained(model, tmp_path, {"saves": "adapter"})
