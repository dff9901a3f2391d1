"""Packed scoring against one full forward a continuation."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from luthier.models.prefix import PrefixMemory
from luthier.models.score import Row, alone, packed_log_probs, score_batches, score_rows

CPU = torch.device("cpu")
WORDS = 61
TINY = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.4,
}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    return LlamaForCausalLM(LlamaConfig(**TINY)).eval()


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
    empty = [Row([5, 6], []), Row([7], [[3], [4, 2]])]  # as many continuations as rows, but not one for each
    assert [len(each) for each in packed_log_probs(model, empty, CPU)] == [0, 2]
    assert [len(each) for each in packed_log_probs(model, empty[:1], CPU)] == [0]


def test_shared_beginnings_are_computed_once(model: LlamaForCausalLM) -> None:
    seen: list[tuple[int, ...]] = []
    hook = model.model.embed_tokens.register_forward_hook(lambda _m, args, _out: seen.append(tuple(args[0].shape)))
    head = list(range(20))
    score_rows(model, [Row([*head, 1], [[2, 3], [2, 4]]), Row([*head, 5], [[2, 3], [2, 4]])], CPU)
    hook.remove()
    assert seen == [(1, 24)]  # beginning, two last prompt tokens, after each the one token that both labels begin with


def test_alone_what_rows_share_is_computed_with_each(model: LlamaForCausalLM) -> None:
    seen: list[tuple[int, ...]] = []
    rows = [Row([*range(40), 1], [[2, 3], [2, 4]]), Row([*range(40), 5], [[2, 3], [2, 4]])]
    expected = packed_log_probs(model, rows, CPU)
    hook = model.model.embed_tokens.register_forward_hook(lambda _m, args, _out: seen.append(tuple(args[0].shape)))
    packed_log_probs(model, rows, CPU)
    assert seen == [(1, 40), (2, 2)]
    with alone():
        found = packed_log_probs(model, rows, CPU)
    hook.remove()
    assert seen[2:] == [(2, 42)], "one forward"
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def few_shot_rows(seed: int, subjects: int = 3, questions: int = 7) -> list[Row]:
    """Questions under long beginnings of their own, two texts with many endings, a prompt asked twice, and a long text alone."""
    draw = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [draw.randrange(WORDS) for _ in range(count)]

    opening = ids(20)
    rows = []
    for _ in range(subjects):
        head = opening + ids(draw.randint(30, 60))
        rows += [Row(head + ids(draw.randint(2, 12)), [[n] for n in range(4)]) for _ in range(questions)]
    text = ids(25)
    rows += [Row(text + ids(1), [ids(draw.randint(1, 9)) for _ in range(6)]) for _ in range(2)]
    rows += [Row(rows[0].prompt, [ids(3)]), Row(ids(1), [ids(150)])]
    draw.shuffle(rows)
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_scores_depend_neither_on_the_batch_size_nor_on_the_order(model: LlamaForCausalLM, seed: int) -> None:
    rows = few_shot_rows(seed)
    expected = [[naive(model, list(p), list(c)) for c in cs] for p, cs in rows]
    order = list(range(len(rows)))
    for most in (1, 16, 64, 200, 4096):
        random.Random(seed + most).shuffle(order)
        got = score_rows(model, [rows[i] for i in order], CPU, max_batch_tokens=most)
        for index, values in zip(order, got, strict=True):
            assert values == pytest.approx(expected[index], abs=1e-4)
            if len(values) > 1:
                assert values.index(max(values)) == expected[index].index(max(expected[index]))
    for index in order[:5]:  # alone
        assert score_rows(model, [rows[index]], CPU)[0] == pytest.approx(expected[index], abs=1e-4)


def test_greedy_says_whether_every_token_is_the_likeliest(model: LlamaForCausalLM) -> None:
    prompt = [5, 9, 11]
    with torch.no_grad():
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False, eos_token_id=None)[0].tolist()
    best = whole[3:]
    other = [*best[:3], (best[3] + 1) % WORDS]
    asked = [Row(prompt, [best, other, best[:2]]), Row([*prompt, *best[:3]], [best[3:], other[3:]])]
    for shared in (asked, asked[:1]):
        found = dict(pair for batch in score_batches(model, shared, CPU) for pair in batch)
        assert [read.greedy for read in found[0]] == [True, False, True]
    windowed = MistralForCausalLM(MistralConfig(**{**TINY, "sliding_window": 64})).eval()
    windowed.load_state_dict(model.state_dict())
    found = dict(pair for batch in score_batches(windowed, asked, CPU) for pair in batch)
    assert [read.greedy for row in (found[0], found[1]) for read in row] == [True, False, True, True, False]


def test_what_memory_holds_is_not_computed_again(model: LlamaForCausalLM) -> None:
    memory, seen = PrefixMemory(), []
    head = [i % WORDS for i in range(40)]
    rows = [Row([*head, n, n + 1], [[1], [2]]) for n in range(30)]
    hook = model.model.embed_tokens.register_forward_hook(lambda _m, args, _out: seen.append(args[0].shape[1]))

    def ask(rows: list[Row]) -> list[list[float]]:
        seen.clear()
        found = dict(
            pair for batch in score_batches(model, rows, CPU, memory=memory, max_batch_tokens=64) for pair in batch
        )
        return [[read.logprob for read in found[n]] for n in range(len(rows))]

    first = ask(rows)
    assert seen == [40, 60]
    again = ask(rows)
    assert seen == [60]
    (alone,) = ask([rows[3]])
    assert seen == [2]
    assert ask([rows[3]])[0] == pytest.approx(first[3], abs=1e-5)
    assert seen == [1]
    hook.remove()
    assert alone == pytest.approx(first[3], abs=1e-5) and again[3] == pytest.approx(first[3], abs=1e-5)


def test_empty_input_and_empty_continuations(model: LlamaForCausalLM) -> None:
    assert score_rows(model, [], CPU) == []
    assert score_rows(model, [Row([1], [])], CPU) == [[]]
    assert score_rows(model, [Row([1], [[]])], CPU) == [[0.0]]
