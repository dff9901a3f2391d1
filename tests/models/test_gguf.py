"""GGUF files: what is written reads back as the same model, and damage is seen before llama.cpp sees it."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf.quants import dequantize, quantize
from peft import LoraConfig, PeftModel, get_peft_model

from luthier.core.errors import DataError, InputError, StoreError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.models.convert import convert
from luthier.models.gguf import TYPES, Shape, check_gguf, export_base, export_lora
from luthier.models.load import LoadedModel, load_folder
from luthier.models.read_gguf import read_header

RECORD = ModelRecord("tiny", "base", "decoder", "0" * 64, licence="MIT")
SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-untied-biased": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
}


def build(tokenizer_folder: Path, folder: Path, family: str = "llama-tied", **changes: Any) -> LoadedModel:
    """A tiny random model of a family, loaded from a folder as any other."""
    name, options = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **options, **changes})
    module = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if parameter.dim() == 1:  # norms and biases that are not all ones or zeros
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if key.endswith("o_proj.bias"):
                parameter.zero_()
    module.save_pretrained(str(folder))
    transformers.AutoTokenizer.from_pretrained(str(tokenizer_folder)).save_pretrained(str(folder))
    return load_folder(folder, RECORD, RECORD, dtype="fp32", device="cpu")


@pytest.fixture
def tiny(tiny_decoder_path: Path, tmp_path: Path) -> LoadedModel:
    return build(tiny_decoder_path, tmp_path / "hf")


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mistral"])
def test_a_written_file_reads_back_as_the_same_model(family: str, tiny_decoder_path: Path, tmp_path: Path) -> None:
    model = build(tiny_decoder_path, tmp_path / "hf", family)
    export_base(model, tmp_path / "m.gguf", "F32")
    (tmp_path / "back").mkdir()
    convert(tmp_path / "m.gguf", tmp_path / "back")
    back = load_folder(tmp_path / "back", RECORD, RECORD, dtype="fp32", device="cpu")
    for (name, ours), (other, theirs) in zip(
        model.module.state_dict().items(), back.module.state_dict().items(), strict=True
    ):
        assert name == other
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
    ids = torch.arange(40)[None]
    torch.testing.assert_close(back.module(ids).logits, model.module(ids).logits)


def test_query_rows_are_paired_as_llama_cpp_rotates_them() -> None:
    rows = np.arange(16)[:, None].astype(np.float32)  # two heads of eight
    paired = Shape("llama", 2, 1, True).reorder("blk.0.attn_q.weight", rows)[:, 0]
    assert paired.tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert (Shape("qwen2", 2, 1, True).reorder("blk.0.attn_q.weight", rows) == rows).all()
    assert (Shape("llama", 2, 1, True).reorder("blk.0.attn_v.weight", rows) == rows).all()


@pytest.mark.parametrize("type_", TYPES)
def test_types(tiny: LoadedModel, tmp_path: Path, type_: str) -> None:
    seen: list[tuple[str, int, int]] = []
    export_base(tiny, tmp_path / "m.gguf", type_, progress=lambda *a: seen.append(a))
    header = check_gguf(tmp_path / "m.gguf")
    weights, kinds = tiny.module.state_dict(), gguf.GGMLQuantizationType
    for place in header.tensors.values():
        expected = kinds.F32 if len(place.shape) == 1 else kinds[type_]
        if place.name == "token_embd.weight" and type_.startswith("Q4"):
            expected = kinds.Q8_0
        assert place.type == expected, place.name
    ours = weights["model.layers.1.mlp.down_proj.weight"].numpy()
    np.testing.assert_array_equal(
        header.read("blk.1.ffn_down.weight"), dequantize(quantize(ours, kinds[type_]), kinds[type_]).reshape(ours.shape)
    )
    np.testing.assert_array_equal(header.read("output_norm.weight"), weights["model.norm.weight"].numpy())
    assert "output.weight" not in header.tensors
    assert seen[-1] == (f"export {type_}", len(header.tensors), len(header.tensors))


def test_metadata(tiny: LoadedModel, tmp_path: Path) -> None:
    export_base(tiny, tmp_path / "m.gguf", "Q8_0")
    found = check_gguf(tmp_path / "m.gguf").metadata
    assert {key: found[key] for key in found if not key.startswith("tokenizer.")} == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "tiny",
        "general.license": "MIT",
        "general.quantization_version": 2,
        "general.file_type": 7,
        "llama.vocab_size": 400,
        "llama.context_length": 256,
        "llama.embedding_length": 32,
        "llama.block_count": 2,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 8,
        "llama.attention.value_length": 8,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 10000.0,
    }


def test_rows_that_do_not_fill_blocks_stay_f16(tiny_decoder_path: Path, tmp_path: Path) -> None:
    model = build(tiny_decoder_path, tmp_path / "hf", hidden_size=24, intermediate_size=64)
    export_base(model, tmp_path / "m.gguf", "Q4_0")
    tensors = check_gguf(tmp_path / "m.gguf").tensors
    assert tensors["blk.0.attn_q.weight"].type == gguf.GGMLQuantizationType.F16
    assert tensors["blk.0.ffn_down.weight"].type == gguf.GGMLQuantizationType.Q4_0


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
)
def test_scaled_positions_become_frequency_factors(
    rope: dict[str, Any], tiny_decoder_path: Path, tmp_path: Path
) -> None:
    model = build(tiny_decoder_path, tmp_path / "hf", rope_parameters=rope, head_dim=32)
    export_base(model, tmp_path / "m.gguf")
    factors = check_gguf(tmp_path / "m.gguf").read("rope_freqs.weight")
    plain = 10000.0 ** -(np.arange(16) / 16)
    np.testing.assert_allclose(plain / factors, model.module.model.rotary_emb.inv_freq.numpy(), rtol=1e-5)
    if rope["rope_type"] == "linear":
        np.testing.assert_allclose(factors, 4.0, rtol=1e-5)
    else:
        assert factors[0] == pytest.approx(1.0) and factors[-1] == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("family", "changes", "text"),
    [
        ("llama-tied", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "linear"),
        ("mistral", {"sliding_window": 16}, "sliding_window"),
        ("llama-tied", {"hidden_act": "gelu"}, "gelu"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    family: str, changes: dict[str, Any], text: str, tiny_decoder_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=text):
        export_base(build(tiny_decoder_path, tmp_path / "hf", family, **changes), tmp_path / "m.gguf")
    assert not list(tmp_path.glob("*gguf*"))


def test_other_architectures_encoders_and_types_are_refused(tiny: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="GPT2LMHeadModel"):
        Shape.of({"architectures": ["GPT2LMHeadModel"]})
    with pytest.raises(UnsupportedError, match="encoder"):
        export_base(replace(tiny, architecture="encoder"), tmp_path / "m.gguf")
    with pytest.raises(InputError, match=r"Q8_0.*got 'Q9'"):
        export_base(tiny, tmp_path / "m.gguf", "Q9")


def test_numbers_beyond_f16_are_refused_and_nothing_is_left(tiny: LoadedModel, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny.module.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    with pytest.raises(DataError, match=r"(?s)blk\.0\.ffn_up\.weight.*BF16"):
        export_base(tiny, tmp_path / "m.gguf", "F16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]
    export_base(tiny, tmp_path / "m.gguf", "BF16")


def test_a_full_disk_leaves_the_old_file(tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_text("old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(StoreError, match="disk is full"):
        export_base(tiny, tmp_path / "m.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "m.gguf"]
    assert (tmp_path / "m.gguf").read_text() == "old"


def test_damage_is_seen(tiny: LoadedModel, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    export_base(tiny, whole)
    data = whole.read_bytes()
    for name, content in {
        "magic": b"GGML" + data[4:],
        "text": b"hello",
        "empty": b"",
        "counts": data[:8] + b"\xff" * 8 + data[16:],
        **{f"cut{n}": data[:n] for n in (3, 20, 100, 5000, len(data) // 2, len(data) - 1)},
    }.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(DataError, match=name):
            check_gguf(path)
    with pytest.raises(DataError, match=r"no\.gguf"):
        check_gguf(tmp_path / "no.gguf")
    with pytest.raises(DataError, match="expected a GGUF adapter"):
        check_gguf(whole, holds="adapter")


def adapter(model: LoadedModel, folder: Path, **options: Any) -> Path:
    """A random PEFT adapter on disk."""
    torch.manual_seed(3)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "k_proj", "down_proj"], **options})
    config.init_lora_weights = False
    get_peft_model(model.module, config).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"k_proj": 40}, "rank_pattern": {"layers.0.self_attn.q_proj": 2}},
    ],
)
def test_a_lora_file_adds_what_peft_adds(options: dict[str, Any], tiny: LoadedModel, tmp_path: Path) -> None:
    plain = {key: value.clone() for key, value in tiny.module.state_dict().items()}
    folder = adapter(tiny, tmp_path / "adapter", **options)
    export_lora(folder, tiny.folder, tmp_path / "a.gguf", name="mine")
    header = check_gguf(tmp_path / "a.gguf", holds="adapter")
    assert header.metadata["general.architecture"] == "llama"
    assert (header.metadata["adapter.type"], header.metadata["adapter.lora.alpha"]) == ("lora", 6.0)
    again = build(tiny.folder, tmp_path / "again")  # building an adapter changed the first one's modules
    merged = PeftModel.from_pretrained(again.module, str(folder)).merge_and_unload()
    shape = Shape.of(json.loads((tiny.folder / "config.json").read_text()))
    names = {key.rsplit(".", 1)[0] for key in header.tensors}
    assert len(names) == 6
    for key, value in merged.state_dict().items():
        name = shape.name(key)
        difference = (value - plain[key]).numpy()
        if name not in names:
            assert not difference.any()
            continue
        a, b = header.read(f"{name}.lora_a"), header.read(f"{name}.lora_b")
        scale = header.metadata["adapter.lora.alpha"] / a.shape[0]  # as llama.cpp computes it
        np.testing.assert_allclose(scale * b @ a, shape.reorder(str(name), difference), atol=2e-5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens"),
    ],
)
def test_what_a_lora_file_cannot_hold(options: dict[str, Any], text: str, tiny: LoadedModel, tmp_path: Path) -> None:
    folder = adapter(tiny, tmp_path / "adapter", **options)
    with pytest.raises(UnsupportedError, match=text) as caught:
        export_lora(folder, tiny.folder, tmp_path / "a.gguf")
    assert "--merge" in str(caught.value.hint)
    assert not (tmp_path / "a.gguf").exists()


def test_damaged_adapters(tiny: LoadedModel, tmp_path: Path) -> None:
    folder = adapter(tiny, tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"adapter_model\.safetensors"):
        export_lora(folder, tiny.folder, tmp_path / "a.gguf")
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(DataError, match=r"adapter_config\.json"):
        export_lora(folder, tiny.folder, tmp_path / "a.gguf")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(UnsupportedError, match="no PEFT adapter"):
        export_lora(folder, tiny.folder, tmp_path / "a.gguf")


def test_the_vocabulary_reads_back(tiny: LoadedModel, tmp_path: Path) -> None:
    from luthier.models.gguf_tokenizer import build_tokenizer

    export_base(tiny, tmp_path / "m.gguf")
    header = read_header(tmp_path / "m.gguf")
    back = build_tokenizer(tmp_path / "m.gguf", header.metadata)
    text = "<|im_start|>user\nMy parcel 123, 我的包裹 \t\n\n  é🙂<|im_end|>"
    assert back(text)["input_ids"] == tiny.tokenizer(text)["input_ids"]
    assert back.chat_template == tiny.tokenizer.chat_template
