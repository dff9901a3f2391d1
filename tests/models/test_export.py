"""Export: which file a model becomes, under which name, with which lineage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from luthier.core.errors import ConflictError, InputError, NotFoundError, StoreError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.models.attach import save_trained
from luthier.models.export import export, find_export, gguf_file
from luthier.models.gguf import check_gguf
from luthier.models.load import load_model
from luthier.store.artifacts import path_of, put, staged
from luthier.store.database import open_store
from luthier.store.lineage import lineage
from luthier.store.models import find, list_models, register


def adapt(base: str, name: str, seed: int = 1, saves: str = "adapter", **options: Any) -> ModelRecord:
    store = open_store()
    model = load_model(store, base, dtype="fp32")
    torch.manual_seed(seed)
    if saves == "adapter":
        config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False, **options)
        model.module = get_peft_model(model.module, config, autocast_adapter_dtype=False)
    else:
        with torch.no_grad():
            model.module.model.norm.weight.mul_(1.5)
    with staged(store) as folder:
        manifest = save_trained(model, folder, {"saves": saves, "method": {"name": "x", "config": {}}})
        digest, size = put(store, folder)
    meta = {
        "template_digest": manifest["template_digest"],
        "labels": ["a", "b"],
        "prompt": {"instruction": "i"},
        "source": "x",
    }
    record = ModelRecord(name, "adapter", "decoder", digest, size, "MIT", base=base, run_id="run_1", meta=meta)
    return register(store, record, replace=True)


def test_a_base_becomes_one_file(tiny_decoder: str) -> None:
    seen: list[str] = []
    made = export(tiny_decoder, progress=lambda stage, done, total: seen.append(stage))
    base = find(open_store(), tiny_decoder)
    assert (made.name, made.kind, made.architecture, made.base) == (
        "tiny-decoder-f16",
        "export",
        "decoder",
        tiny_decoder,
    )
    assert made.meta["target_digest"] == base.digest
    assert {key: made.meta[key] for key in ("format", "holds", "quantization", "target", "context_length")} == {
        "format": "gguf",
        "holds": "model",
        "quantization": "F16",
        "target": tiny_decoder,
        "context_length": 512,
    }
    assert made.meta["template_digest"] == load_model(open_store(), tiny_decoder).template_digest
    assert made.licence == base.licence
    path = gguf_file(open_store(), made)
    assert path.parent == path_of(open_store(), made.digest)
    assert made.size_bytes == path.stat().st_size
    assert check_gguf(path).metadata["general.name"] == tiny_decoder
    assert set(seen) == {"export F16"}


def test_the_same_export_is_found_not_made(tiny_decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = export(tiny_decoder, type="Q8_0")
    monkeypatch.setattr("luthier.models.export._make", lambda *a, **k: pytest.fail("made again"))
    assert export(tiny_decoder, type="Q8_0") == first


def test_equal_work_makes_equal_bytes(tiny_decoder: str) -> None:
    assert export(tiny_decoder).digest == export(tiny_decoder, as_name="other").digest
    assert [r.name for r in list_models(open_store(), "export")] == ["tiny-decoder-f16", "other"]


def test_a_damaged_export_is_made_again(tiny_decoder: str) -> None:
    store = open_store()
    first = export(tiny_decoder)
    gguf_file(store, first).write_bytes(b"short")
    with pytest.raises(StoreError, match="damaged"):
        gguf_file(store, first)
    again = export(tiny_decoder)
    assert again.digest == first.digest
    check_gguf(gguf_file(store, again))


def test_an_adapter_becomes_a_lora_file_or_is_merged(tiny_decoder: str) -> None:
    adapt(tiny_decoder, "mine")
    store = open_store()
    lora, merged = export("mine", type="Q8_0"), export("mine", type="Q8_0", merge=True)
    assert (lora.name, lora.meta["holds"], lora.meta["quantization"]) == ("mine-lora-gguf", "lora", "F32")
    assert (merged.name, merged.meta["holds"], merged.meta["quantization"]) == ("mine-q8_0", "model", "Q8_0")
    check_gguf(gguf_file(store, lora), holds="adapter")
    check_gguf(gguf_file(store, merged))
    for made in (lora, merged):
        assert (made.base, made.licence, made.meta["target"]) == (tiny_decoder, "MIT", "mine")
        assert (made.meta["labels"], made.meta["prompt"]) == (["a", "b"], {"instruction": "i"})
        assert "source" not in made.meta
    assert lora.meta["base_digest"] == find(store, tiny_decoder).digest


def test_merged_weights_are_base_plus_adapter(tiny_decoder: str) -> None:
    adapt(tiny_decoder, "mine")
    store = open_store()
    plain = check_gguf(gguf_file(store, export(tiny_decoder, type="F32")))
    merged = check_gguf(gguf_file(store, export("mine", type="F32", merge=True)))
    lora = check_gguf(gguf_file(store, export("mine")), holds="adapter")
    name = "blk.1.ffn_up.weight"
    added = lora.metadata["adapter.lora.alpha"] / 2 * lora.read(f"{name}.lora_b") @ lora.read(f"{name}.lora_a")
    assert abs(merged.read(name) - plain.read(name) - added).max() < 1e-6
    assert abs(added).max() > 1e-3
    assert (merged.read("blk.1.ffn_down.weight") == plain.read("blk.1.ffn_down.weight")).all()


def test_whole_weights_and_other_adapters_are_merged(tiny_decoder: str) -> None:
    adapt(tiny_decoder, "full", saves="weights")
    adapt(tiny_decoder, "dora", use_dora=True)
    assert export("full").name == "full-f16"
    assert export("dora").name == "dora-f16"
    with pytest.raises(UnsupportedError, match="no LoRA file"):
        export("full", merge=False)
    with pytest.raises(UnsupportedError, match="use_dora"):
        export("dora", merge=False)


def test_a_new_version_of_a_model_replaces_its_export(tiny_decoder: str) -> None:
    adapt(tiny_decoder, "mine", seed=1)
    first = export("mine")
    adapt(tiny_decoder, "mine", seed=2)
    second = export("mine")
    assert first.name == second.name and first.digest != second.digest
    assert find_export(open_store(), find(open_store(), "mine"), "F32", as_lora=True) == second


def test_names(tiny_decoder: str) -> None:
    assert export(tiny_decoder, as_name="chosen").name == "chosen"
    with pytest.raises(ConflictError, match="taken"):
        export(tiny_decoder, as_name=tiny_decoder)
    with pytest.raises(InputError, match="name must be"):
        export(tiny_decoder, as_name="not/a name")
    with pytest.raises(NotFoundError, match="tiny-decoder"):
        export("tiny-decoderr")


def test_a_copy_outside_the_store(tiny_decoder: str, tmp_path: Path) -> None:
    made = export(tiny_decoder, out=tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == gguf_file(open_store(), made).read_bytes()
    export(tiny_decoder, out=tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*gguf*")) == ["copy.gguf", "tiny-decoder-f16.gguf"]
    with pytest.raises(StoreError, match="missing"):
        export(tiny_decoder, out=tmp_path / "missing" / "x.gguf")


def test_the_lineage_shows_it(tiny_decoder: str) -> None:
    adapt(tiny_decoder, "mine")
    export("mine")
    edges = {(e.source.id, e.relation, e.target.id) for e in lineage("mine-lora-gguf").edges}
    assert ("mine", "exported as", "mine-lora-gguf") in edges


def test_what_cannot_be_exported(tiny_decoder: str, tiny_encoder: str) -> None:
    made = export(tiny_decoder)
    with pytest.raises(UnsupportedError, match="is an export") as caught:
        export(made.name)
    assert caught.value.hint == f"luthier export {tiny_decoder}"
    with pytest.raises(UnsupportedError, match="encoder"):
        export(tiny_encoder)
    with pytest.raises(InputError, match="Q4_1; got 'Q5_K'"):
        export(tiny_decoder, type="Q5_K")
    assert [r.name for r in list_models(open_store(), "export")] == [made.name]
