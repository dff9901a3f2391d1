"""LoRA with embeddings and head trained whole: what is trained, tied and untied."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.methods.tiny import KINDS, WORDS, each_linear
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, T5ForConditionalGeneration

from luthier.core.errors import InputError
from luthier.core.model import ModelRecord
from luthier.methods.lora_and_embeddings import Config, build, trained_parameters
from luthier.models.attach import attach, save_trained, select
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.models.pull import pull
from luthier.store.database import open_store

_LORA = each_linear(lambda i, o: 8 * (i + o))
COUNTS = {kind: _LORA[kind] + WORDS[kind] for kind in KINDS}  # the head is the embeddings

IDS = torch.tensor([[5, 9, 30, 7]])


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


@pytest.fixture
def untied(home: Path, tiny_decoder_path: Path, tmp_path: Path) -> LoadedModel:
    """The tiny decoder with a head of its own."""
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_decoder_path))
    sizes = LlamaConfig.from_pretrained(str(tiny_decoder_path))
    sizes.tie_word_embeddings = False
    torch.manual_seed(1)
    LlamaForCausalLM(sizes).save_pretrained(str(tmp_path / "untied"))
    tokenizer.save_pretrained(str(tmp_path / "untied"))
    name = pull(f"file:{tmp_path / 'untied'}", alias="untied").name
    return load_model(open_store(), name, dtype="fp32", device="cpu")


def shaken(model: LoadedModel) -> LoadedModel:
    torch.manual_seed(0)
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("base", ["tiny_decoder", "tiny_gpt2"])
def test_a_tied_head_stays_the_embeddings(base: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    name = request.getfixturevalue(base)
    model = load_model(open_store(), name, dtype="fp32", device="cpu")
    words = model.module.get_input_embeddings().weight.numel()
    lora = {
        "tiny_decoder": 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64)),
        "tiny_gpt2": 2 * 4 * ((32 + 96) + (32 + 32) + 2 * (32 + 64)),
    }[base]
    assert trained_parameters(model.module, Config(rank=4)) == lora + words
    trained = shaken(build(model, Config(rank=4)))
    assert sum(p.numel() for p in trained.module.parameters() if p.requires_grad) == lora + words
    module = trained.module
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight
    module(IDS).logits.sum().backward()
    assert torch.count_nonzero(module.get_input_embeddings().weight.grad)
    expected = module(IDS).logits.detach()
    save_trained(trained, tmp_path, {"saves": "adapter"})
    base = load_model(open_store(), model.record, dtype="fp32", device="cpu")
    bare = base.module(IDS).logits
    attach(base, ModelRecord("a", "adapter", "decoder", ""), "a", folder=tmp_path)
    select(base, "a")
    torch.testing.assert_close(base.module(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert base.module.get_output_embeddings().weight is base.module.get_input_embeddings().weight
    select(base, None)
    torch.testing.assert_close(base.module(IDS).logits, bare, rtol=0, atol=0)
    select(base, "a")
    merged = merge(base).module
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert merged.lm_head.weight is merged.get_input_embeddings().weight
    assert merged.config.tie_word_embeddings


def test_a_head_of_its_own_is_trained_too(untied: LoadedModel, tmp_path: Path) -> None:
    words = untied.module.get_input_embeddings().weight.numel()
    lora = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert trained_parameters(untied.module, Config(rank=4)) == lora + 2 * words
    trained = shaken(build(untied, Config(rank=4)))
    assert sum(p.numel() for p in trained.module.parameters() if p.requires_grad) == lora + 2 * words
    expected = trained.module(IDS).logits.detach()
    save_trained(trained, tmp_path / "saved", {"saves": "adapter"})
    base = load_model(open_store(), untied.record, dtype="fp32", device="cpu")
    attach(base, ModelRecord("a", "adapter", "decoder", ""), "a", folder=tmp_path / "saved")
    select(base, "a")
    torch.testing.assert_close(base.module(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merge(base).module(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_peft_reads_the_file(model: LoadedModel, tmp_path: Path) -> None:
    from peft import PeftModel

    trained = shaken(build(model, Config(rank=4)))
    expected = trained.module(IDS).logits.detach()
    save_trained(trained, tmp_path, {"saves": "adapter"})
    plain = load_model(open_store(), model.record, dtype="fp32", device="cpu").module
    theirs = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    torch.testing.assert_close(theirs(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_bounds(model: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"method\.rank must be at most 16"):
        build(model, Config(rank=17))
    with pytest.raises(InputError, match=r"got 'q_porj', which matches none"):
        build(model, Config(targets=["q_porj"]))


@pytest.mark.parametrize("head", ["tied", "own"])
def test_the_stacks_of_an_encoder_decoder_share_the_trained_embeddings(
    head: str, tiny_t5_path: Path, home: Path, tmp_path: Path
) -> None:
    """PEFT gives the stacks linear layers in place of their embeddings, and ties a head of its own (T5 v1.1) to them."""
    torch.manual_seed(1)
    plain = T5ForConditionalGeneration.from_pretrained(str(tiny_t5_path))
    if head == "own":
        plain.lm_head.weight = torch.nn.Parameter(torch.randn(384, 32))
        plain.config.tie_word_embeddings = plain.config.scale_decoder_outputs = False
    plain.save_pretrained(str(tmp_path / "t5"))
    AutoTokenizer.from_pretrained(str(tiny_t5_path)).save_pretrained(str(tmp_path / "t5"))
    record = pull(f"file:{tmp_path / 't5'}", alias=f"t5-{head}")
    model = load_model(open_store(), record, dtype="fp32", device="cpu")
    assert torch.equal(model.module.lm_head.weight, model.module.shared.weight) == (head == "tied")
    wanted = COUNTS["t5"] + (WORDS["t5"] if head == "own" else 0)
    assert trained_parameters(model.module, Config()) == wanted
    trained = shaken(build(model, Config()))
    assert sum(p.numel() for p in trained.module.parameters() if p.requires_grad) == wanted
    module, inside = trained.module, trained.module.base_model.model
    embeddings = inside.shared.modules_to_save["default"]
    for stack in (inside.encoder, inside.decoder):
        assert type(stack.embed_tokens.modules_to_save["default"]) is torch.nn.Embedding
        assert stack.embed_tokens.modules_to_save["default"].weight is embeddings.weight
    assert (inside.lm_head.modules_to_save["default"].weight is embeddings.weight) == (head == "tied")
    pair = {"input_ids": IDS, "decoder_input_ids": IDS}
    module(**pair).logits.square().sum().backward()
    assert torch.count_nonzero(embeddings.weight.grad)
    with torch.no_grad():
        expected = module.eval()(**pair).logits
    save_trained(trained, tmp_path / "adapter", {"saves": "adapter"})
    base = load_model(open_store(), record, dtype="fp32", device="cpu")
    bare = base.module(**pair).logits
    attach(base, ModelRecord("a", "adapter", "encoder-decoder", ""), "a", folder=tmp_path / "adapter")
    select(base, "a")
    torch.testing.assert_close(base.module(**pair).logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merge(base).module(**pair).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(bare, expected)
