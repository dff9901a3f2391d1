import json
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from tests.models.gguf_files import permuted, write_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

from luthier.core.errors import DataError, UnsupportedError
from luthier.models.convert import ARCHITECTURES, convert, unpermuted

CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def tiny(arch, vocabulary, **changes):
    torch.manual_seed(1)
    values = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "tie_word_embeddings": True,
    }
    module = AutoModelForCausalLM.from_config(CONFIGS[arch](**values | changes)).eval()
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn_like(value) * 0.05)  # also biases and norms, which begin as constants
    return module


@pytest.fixture
def tokenizer(tiny_decoder_path):
    return AutoTokenizer.from_pretrained(str(tiny_decoder_path))


def same_answers(first, second):
    ids = torch.arange(20)[None] % 300
    with torch.no_grad():
        torch.testing.assert_close(first(ids).logits, second(ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize("arch", list(ARCHITECTURES))
@pytest.mark.parametrize("tied", [True, False])
def test_a_float_file_gives_the_very_same_model(arch, tied, tokenizer, tmp_path):
    module = tiny(arch, len(tokenizer), tie_word_embeddings=tied)
    path = write_model(tmp_path / "m.gguf", module, tokenizer, arch=arch)
    found = convert(path, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype="auto").eval()
    assert type(again) is type(module)
    assert found == {"dtype": "float32", "quantization": "F32", "licence": "apache-2.0"}
    state = again.state_dict()
    assert set(state) == set(module.state_dict())
    for name, value in module.state_dict().items():
        assert torch.equal(state[name], value), name
    same_answers(module, again)


def test_a_llama_with_biases_is_taken_over(tokenizer, tmp_path):
    module = tiny("llama", len(tokenizer), attention_bias=True, mlp_bias=True)
    convert(write_model(tmp_path / "m.gguf", module, tokenizer), tmp_path)
    same_answers(module, AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype="auto").eval())


def test_a_quantised_file_gives_what_transformers_reads_from_it_in_bf16(tokenizer, tmp_path):
    """transformers' own GGUF reader is the reference."""
    module = tiny("llama", len(tokenizer))
    kind = gguf.GGMLQuantizationType.Q8_0
    path = write_model(tmp_path / "m.gguf", module, tokenizer, kind=kind)
    out = tmp_path / "out"
    out.mkdir()
    assert convert(path, out) == {"dtype": "bfloat16", "quantization": "Q8_0", "licence": "apache-2.0"}
    ours = AutoModelForCausalLM.from_pretrained(str(out), dtype="auto")
    theirs = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file="m.gguf", dtype=torch.float32)
    assert ours.dtype == torch.bfloat16
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value.to(torch.bfloat16)), name
    for key in (
        "rope_parameters",
        "rms_norm_eps",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "max_position_embeddings",
    ):
        wanted, got = getattr(theirs.config, key), getattr(ours.config, key)
        assert got == pytest.approx(wanted, rel=1e-6) if isinstance(wanted, float) else got == wanted, key
    assert json.loads((out / "config.json").read_text())["rms_norm_eps"] == 1e-5, "not 9.999999747378752e-06"


def test_an_f16_file_stays_f16(tokenizer, tmp_path):
    path = write_model(
        tmp_path / "m.gguf", tiny("llama", len(tokenizer)), tokenizer, kind=gguf.GGMLQuantizationType.F16
    )
    assert convert(path, tmp_path)["dtype"] == "float16"
    assert AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype="auto").dtype == torch.float16


def test_the_row_order_is_llama_cpps_undone():
    weight = np.arange(4 * 6 * 5, dtype=np.float32).reshape(24, 5)
    assert not np.array_equal(permuted(weight, 4), weight)
    np.testing.assert_array_equal(unpermuted(permuted(weight, 4), 4), weight)
    np.testing.assert_array_equal(unpermuted(permuted(weight[:, 0], 4), 4), weight[:, 0])


def test_the_tokenizer_and_its_template_come_along(tokenizer, tmp_path):
    convert(write_model(tmp_path / "m.gguf", tiny("llama", len(tokenizer)), tokenizer, pre="gpt-2"), tmp_path)
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    text = "The parcel 请 2024<|im_end|>\n"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert (again.bos_token, again.eos_token, again.pad_token) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    assert (
        again.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "<|im_start|>user\nx<|im_end|>"
    )
    assert again.model_max_length == 128


def test_an_answer_ends_at_the_end_of_turn_too(tokenizer, tmp_path):
    more = {"tokenizer.ggml.eot_token_id": 0}
    convert(write_model(tmp_path / "m.gguf", tiny("llama", len(tokenizer)), tokenizer, more=more), tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"arch": "mamba"}, UnsupportedError, "architecture must be one of llama, qwen2, qwen3; got 'mamba'"),
        ({"pre": "deepseek-llm"}, UnsupportedError, "pre-tokenizer gpt-2, .*got 'gpt2' with 'deepseek-llm'"),
        ({"more": {"llama.expert_count": 8}}, UnsupportedError, "experts"),
        ({"add": ("rope_freqs.weight",)}, UnsupportedError, "scaled positions"),
        ({"add": ("blk.0.attn_sinks.weight",)}, UnsupportedError, "attn_sinks.* has no place"),
        ({"drop": ("blk.1.ffn_up.weight",)}, DataError, "model.layers.1.mlp.up_proj.weight.*got none"),
        ({"drop": ("token_embd.weight",)}, DataError, "token_embd.weight"),
    ],
)
def test_what_cannot_be_taken_over_exactly_is_refused(changes, error, said, tokenizer, tmp_path):
    module = tiny("llama", len(tokenizer))
    path = write_model(tmp_path / "m.gguf", module, tokenizer, **changes)
    with pytest.raises(error, match=said) as raised:
        convert(path, tmp_path)
    assert "m.gguf" in str(raised.value)
    assert not (tmp_path / "model.safetensors").exists()


def test_values_that_are_not_numbers_are_damage(tokenizer, tmp_path):
    module = tiny("llama", len(tokenizer))
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(DataError, match=r"blk\.1\.ffn_up\.weight.*not numbers"):
        convert(write_model(tmp_path / "m.gguf", module, tokenizer), tmp_path)


def test_progress_counts_tensors(tokenizer, tmp_path):
    seen = []
    path = write_model(tmp_path / "m.gguf", tiny("llama", len(tokenizer)), tokenizer)
    convert(
        path,
        tmp_path,
        lambda *call: seen.append(SimpleNamespace(stage=call[0], done=call[1], total=call[2])),
        stage="c",
    )
    assert seen[-1].done == seen[-1].total == 20 and {s.stage for s in seen} == {"c"}
