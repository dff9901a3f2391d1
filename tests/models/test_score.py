"""Packed scoring against one full forward a continuation."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from luthier.models.score import Row, packed_log_probs, score_rows

CPU = torch.device("cpu")
WORDS = 61


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


def naive(model: torch.nn.Module, prompt: list[int], continuation: list[int]) -> float:
    """Sum of log p(token | everything before it), from one plain forward."""
    with torch.no_grad():
        log_probs = model(torch.tensor([prompt + continuation])).logits[0].log_softmax(-1)
    return sum(log_probs[len(prompt) - 1 + i, token].item() for i, token in enumerate(continuation))


def random_rows(seed: int, *, prefix: int = 0, alphabet: int = WORDS) -> list[Row]:
    draw = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(alphabet) for _ in range(draw.randint(low, high))]

    head = ids(prefix, prefix)
    return [Row(head + ids(1, 9), [ids(1, 5) for _ in range(draw.randint(1, 6))]) for _ in range(draw.randint(1, 8))]


@pytest.mark.parametrize("seed", range(12))
def test_scores_equal_separate_forwards(model: LlamaForCausalLM, seed: int) -> None:
    # a small alphabet makes continuations share beginnings, a prefix makes prompts share theirs
    rows = random_rows(seed, prefix=[0, 17, 30][seed % 3], alphabet=[WORDS, 3][seed % 2])
    expected = [[naive(model, list(p), list(c)) for c in cs] for p, cs in rows]
    for most in (1, 37, 4096):
        found = score_rows(model, rows, CPU, max_batch_tokens=most)
        for got, want in zip(found, expected, strict=True):
            assert got == pytest.approx(want, abs=1e-4)
    packed = packed_log_probs(model, rows, CPU)
    for vector, want in zip(packed, expected, strict=True):
        assert vector.tolist() == pytest.approx(want, abs=1e-4)


def test_order_of_rows_and_continuations_does_not_matter(model: LlamaForCausalLM) -> None:
    rows = random_rows(5, prefix=20)
    forward = score_rows(model, rows, CPU)
    turned = score_rows(model, [Row(p, cs[::-1]) for p, cs in rows[::-1]], CPU, max_batch_tokens=30)
    for got, want in zip(turned[::-1], forward, strict=True):
        assert got[::-1] == pytest.approx(want, abs=1e-4)


def test_gradients_equal_separate_forwards(model: LlamaForCausalLM) -> None:
    rows = [Row([5, 6, 7], [[1, 2, 3], [1, 2, 4], [9]]), Row([8], [[1, 2]])]
    weight = model.model.layers[0].self_attn.q_proj.weight

    model.zero_grad()
    torch.stack([v.sum() for v in packed_log_probs(model, rows, CPU)]).sum().backward()
    packed = weight.grad.clone()

    model.zero_grad()
    for prompt, continuations in rows:
        for continuation in continuations:
            log_probs = model(torch.tensor([[*prompt, *continuation]])).logits[0].log_softmax(-1)
            at = torch.arange(len(continuation)) + len(prompt) - 1
            log_probs[at, torch.tensor(continuation)].sum().backward()
    torch.testing.assert_close(packed, weight.grad, atol=1e-4, rtol=1e-4)
    model.zero_grad()


def test_a_model_with_sliding_windows_is_scored_too() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=4,
        initializer_range=0.4,
        attn_implementation="sdpa",
    )
    model = MistralForCausalLM(config).eval()
    rows = random_rows(1, prefix=20)
    expected = [[naive(model, list(p), list(c)) for c in cs] for p, cs in rows]
    for got, want in zip(score_rows(model, rows, CPU), expected, strict=True):
        assert got == pytest.approx(want, abs=1e-4)
    for got, want in zip(packed_log_probs(model, rows, CPU), expected, strict=True):
        assert got.tolist() == pytest.approx(want, abs=1e-4)


def test_shared_beginnings_are_computed_once(model: LlamaForCausalLM) -> None:
    seen: list[tuple[int, ...]] = []
    hook = model.model.embed_tokens.register_forward_hook(lambda _m, args, _out: seen.append(tuple(args[0].shape)))
    head = list(range(20))
    score_rows(model, [Row([*head, 1], [[2, 3], [2, 4]]), Row([*head, 5], [[2, 3], [2, 4]])], CPU)
    hook.remove()
    assert seen == [(1, 24)]  # beginning, two last prompt tokens, after each the one token that both labels begin with


def test_empty_input_and_empty_continuations(model: LlamaForCausalLM) -> None:
    assert score_rows(model, [], CPU) == []
    assert score_rows(model, [Row([1], [])], CPU) == [[]]
    assert score_rows(model, [Row([1], [[]])], CPU) == [[0.0]]
