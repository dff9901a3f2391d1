from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertModel

from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.models.encoder import EncoderClassifier, encode_texts, read_max_tokens, read_pooling


@pytest.fixture
def body() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    return BertModel(config).eval()


IDS = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def test_mean_pooling_reads_real_tokens_only(body: BertModel) -> None:
    pooled = EncoderClassifier(body).pooled(IDS, MASK)
    alone = body(input_ids=IDS[1:, :3]).last_hidden_state
    torch.testing.assert_close(pooled[1], alone[0].mean(0), atol=1e-5, rtol=1e-5)
    first = EncoderClassifier(body, pooling="cls").pooled(IDS, MASK)
    torch.testing.assert_close(first[1], alone[0, 0], atol=1e-5, rtol=1e-5)


def test_pooling_equals_sentence_transformers_equation_in_bf16(body: BertModel) -> None:
    pooled = EncoderClassifier(body.to(torch.bfloat16)).pooled(IDS, MASK)
    hidden = body(input_ids=IDS, attention_mask=MASK).last_hidden_state.double()
    expected = (hidden * MASK[..., None]).sum(1) / MASK.sum(1, keepdim=True)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled.double(), expected, atol=1e-6, rtol=1e-6)


def test_a_frozen_body_costs_no_gradients_and_no_noise(body: BertModel) -> None:
    model = EncoderClassifier(body.requires_grad_(False), 3, dropout=0.5)
    model.train()
    assert model.training and not model.body.training and model.dropout.training
    assert not model.pooled(IDS, MASK).requires_grad
    model(IDS, MASK).sum().backward()
    assert model.head is not None and model.head.weight.grad is not None


def test_a_trained_body_gets_gradients_through_both_poolings(body: BertModel) -> None:
    for pooling in ("mean", "cls"):
        model = EncoderClassifier(body, 3, pooling=pooling)  # type: ignore[arg-type]
        model.train()
        assert model.body.training
        model(IDS, MASK).logsumexp(-1).sum().backward()
        assert model.body.embeddings.word_embeddings.weight.grad.abs().sum() > 0
        model.zero_grad()


def test_without_a_head_there_are_no_logits(body: BertModel) -> None:
    with pytest.raises(UnsupportedError, match="no classification head"):
        EncoderClassifier(body)(IDS, MASK)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "cls"}, "cls"),
        ({}, "mean"),
    ],
)
def test_pooling_is_read_from_the_folder(tmp_path: Path, stated: dict[str, object], expected: str) -> None:
    assert read_pooling(tmp_path) == "mean"
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(stated))
    assert read_pooling(tmp_path) == expected


def test_other_or_unreadable_pooling(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    path = tmp_path / "1_Pooling" / "config.json"
    path.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(UnsupportedError, match="max_tokens"):
        read_pooling(tmp_path)
    path.write_text("{")
    with pytest.raises(DataError, match="1_Pooling"):
        read_pooling(tmp_path)


def test_the_longest_text_is_the_smallest_limit(tmp_path: Path) -> None:
    config = SimpleNamespace(max_position_embeddings=512, model_type="bert", pad_token_id=0)
    endless = SimpleNamespace(model_max_length=10**30)
    assert read_max_tokens(tmp_path, config, endless) == 512
    assert read_max_tokens(tmp_path, config, SimpleNamespace(model_max_length=300)) == 300
    roberta = SimpleNamespace(max_position_embeddings=514, model_type="roberta", pad_token_id=1)
    assert read_max_tokens(tmp_path, roberta, endless) == 512
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    assert read_max_tokens(tmp_path, config, endless) == 256


def test_long_texts_are_cut_before_the_closing_token(tiny_encoder_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_encoder_path))
    short, long = encode_texts(tokenizer, ["refund", "refund " * 50], 10)
    assert short == tokenizer("refund")["input_ids"]
    assert long == tokenizer("refund " * 50, truncation=True, max_length=10)["input_ids"]
    with pytest.raises(InputError, match="Unicode"):
        encode_texts(tokenizer, ["\ud800"], 10)
