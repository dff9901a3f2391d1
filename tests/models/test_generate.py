"""Step by step answering against ``transformers`` own generation."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from luthier.core.engine import Sampling
from luthier.models import generate
from luthier.models.decode import attends_fully
from luthier.models.generate import Answering
from luthier.models.prefix import PrefixMemory, shared_prefix

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 71,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "eos_token_id": None,
}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def reference(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()


def run(model: torch.nn.Module, prompts: list[list[int]], limits: list[int], **kwargs: object) -> list[list[int]]:
    """Answer until each row has its own number of tokens."""
    batch = Answering(prompts, Sampling(max_new_tokens=max(limits)), CPU, **kwargs)  # type: ignore[arg-type]
    out: list[list[int]] = [[] for _ in prompts]
    while not batch.done:
        for row, token, _ in zip(*batch.step(model), strict=True):
            out[row].append(token)
        batch.finish(i for i, ids in enumerate(out) if len(ids) == limits[i])
    return out


def test_rows_of_different_lengths_answer_as_alone(model: LlamaForCausalLM) -> None:
    prompts = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [30, 31, 32, 33]]
    limits = [12, 30, 3, 7]  # rows leave the batch at different times
    expected = [reference(model, p, n) for p, n in zip(prompts, limits, strict=True)]
    for read_tokens in (1, 12, 1024):  # prompts go through the model in groups
        assert run(model, prompts, limits, read_tokens=read_tokens) == expected
    assert [run(model, [p], [n])[0] for p, n in zip(prompts, limits, strict=True)] == expected


def test_a_shared_prefix_changes_nothing(model: LlamaForCausalLM) -> None:
    head = [(7 * i) % 71 for i in range(20)]
    prompts = [[*head, 5], [*head, 6, 7, 8], [*head, 9, 10]]
    limits = [9, 4, 20]
    shared, prefix = shared_prefix(model, prompts, CPU, PrefixMemory(), None)
    assert shared == 20
    expected = [reference(model, p, n) for p, n in zip(prompts, limits, strict=True)]
    for read_tokens in (1, 4, 1024):
        assert run(model, prompts, limits, prefix=prefix, shared=shared, read_tokens=read_tokens) == expected
    assert run(model, prompts[1:2], limits[1:2], prefix=prefix, shared=11)[0] == expected[1]


def test_answers_longer_than_the_first_buffer(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "FIRST_ROOM", 3)
    assert run(model, [[1, 2], [3]], [40, 30]) == [reference(model, [1, 2], 40), reference(model, [3], 30)]


def test_the_log_probability_is_the_model_s_own(model: LlamaForCausalLM) -> None:
    batch = Answering([[4, 5], [6]], Sampling(temperature=2.0, seed=1, top_k=5, repetition_penalty=1.3), CPU)
    ids, sums = [[4, 5], [6]], [0.0, 0.0]
    for _ in range(6):
        for row, token, log_prob in zip(*batch.step(model), strict=True):
            ids[row].append(token)
            sums[row] += log_prob
    for row, start in ((0, 2), (1, 1)):
        with torch.no_grad():
            log_probs = model(torch.tensor([ids[row]])).logits[0].log_softmax(-1)
        expected = sum(log_probs[i - 1, ids[row][i]].item() for i in range(start, len(ids[row])))
        assert sums[row] == pytest.approx(expected, abs=1e-4)


def test_the_prompt_s_cache_serves_the_next_prompt(model: LlamaForCausalLM) -> None:
    first = [(3 * i) % 71 for i in range(18)]
    batch = Answering([first], Sampling(), CPU)
    batch.step(model)
    batch.step(model)
    kept = batch.prompt_cache()
    longer = [*first, 4, 5, 6]
    assert run(model, [longer], [8], prefix=kept, shared=18)[0] == reference(model, longer, 8)


def test_models_with_windows_answer_rows_of_one_length() -> None:
    torch.manual_seed(0)
    config = MistralConfig(**SHAPE, sliding_window=5, attn_implementation="sdpa")
    model = MistralForCausalLM(config).eval()
    assert not attends_fully(model)
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1]]
    found = run(model, prompts, [12, 2], full_attention=False)
    assert found == [reference(model, prompts[0], 12), reference(model, prompts[1], 2)]


@pytest.mark.parametrize("windows", [False, True])
def test_copies_of_a_prompt_answer_by_their_own_seeds(model: LlamaForCausalLM, windows: bool) -> None:
    """A prompt is read once for all its answers, whose rows then leave at different times; each is what its seed gives alone."""
    answering, prompts = model, [[5, 6, 7], [9, 8, 7, 6, 5, 4]]
    if windows:
        torch.manual_seed(0)
        answering = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5, attn_implementation="sdpa")).eval()
        prompts = [[1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1]]
    sampling, seeds, limits = Sampling(max_new_tokens=20, temperature=1.0), [3, 4, 5, 6, 7, 8], [20, 2, 9, 3, 1, 12]

    def answer(asked: list[list[int]], copies: int, own: list[int], most: list[int]) -> list[list[int]]:
        batch = Answering(asked, sampling, CPU, full_attention=not windows, copies=copies, seeds=own)
        out: list[list[int]] = [[] for _ in own]
        while not batch.done:
            for row, token, _ in zip(*batch.step(answering), strict=True):
                out[row].append(token)
            batch.finish(i for i, ids in enumerate(out) if len(ids) == most[i])
        return out

    together = answer(prompts, 3, seeds, limits)
    alone = [answer([prompts[i // 3]], 1, [seeds[i]], [limits[i]])[0] for i in range(6)]
    assert together == alone and len({tuple(ids[:1]) for ids in together}) > 2
