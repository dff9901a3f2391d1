from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from luthier.core.engine import Sampling
from luthier.models.sample import Sampler

CPU = torch.device("cpu")
YES_MAYBE_NO = torch.tensor([[0.60, 0.31, 0.08, 0.01]]).log()


def frequencies(sampling: Sampling, logits: torch.Tensor, prompt: list[int], draws: int = 20_000) -> torch.Tensor:
    """How often each token comes, from many rows with generators of their own."""
    sampler = Sampler(sampling, [prompt] * draws, CPU)
    sampler._generators = [torch.Generator().manual_seed(i) for i in range(draws)]
    tokens, _ = sampler.draw(logits.expand(draws, -1))
    return torch.bincount(tokens, minlength=logits.shape[1]) / draws


def test_greedy_takes_the_likeliest_and_says_how_likely() -> None:
    tokens, log_probs = Sampler(Sampling(), [[]], CPU).draw(YES_MAYBE_NO)
    assert tokens.tolist() == [0]
    assert log_probs.tolist() == pytest.approx([math.log(0.60)])


@pytest.mark.parametrize(("top_p", "kept"), [(0.90, 2), (0.91, 2), (0.92, 3), (0.99, 3), (0.5, 1), (0.6, 1)])
def test_the_nucleus_is_the_fewest_that_reach_top_p(top_p: float, kept: int) -> None:
    found = frequencies(Sampling(temperature=1.0, top_p=top_p), YES_MAYBE_NO, [], draws=3000)
    assert int((found > 0).sum()) == kept


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5),
        Sampling(temperature=1.3, top_k=3),
        Sampling(temperature=0.8, top_p=0.8),
        Sampling(temperature=1.2, top_k=5, top_p=0.7, repetition_penalty=1.4),
        Sampling(temperature=1.0, repetition_penalty=0.7),
    ],
)
def test_frequencies_are_those_of_the_transformers_processors(sampling: Sampling) -> None:
    torch.manual_seed(1)
    logits, prompt = torch.randn(1, 12) * 2, [3, 7, 7]
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        processors.append(TopPLogitsWarper(sampling.top_p))
    expected = processors(torch.tensor([prompt]), logits.clone()).softmax(-1)[0]
    found = frequencies(sampling, logits, prompt)
    assert (found > 0).tolist() == (expected > 1e-3).tolist() or float(expected[expected > 0].min()) < 1e-3
    torch.testing.assert_close(found, expected, atol=0.015, rtol=0)  # 4 standard errors at 20,000 draws


def test_a_wide_nucleus_in_a_large_vocabulary_is_whole() -> None:
    logits = torch.zeros(1, 5000)  # uniform: 0.5 of it are 2,500 tokens, far more than are looked at first
    found = frequencies(Sampling(temperature=1.0, top_p=0.5), logits, [], draws=600)
    assert (found > 0).sum() > 450  # 600 draws from 2,500 tokens
    narrowed = frequencies(Sampling(temperature=1.0, top_p=0.5, top_k=500), logits, [], draws=600)
    assert 200 < (narrowed > 0).sum() <= 251


def test_repetition_penalty_counts_what_was_drawn() -> None:
    sampler = Sampler(Sampling(repetition_penalty=10.0), [[0]], CPU)
    logits = torch.tensor([[5.0, 4.0, 3.0]])
    drawn = [sampler.draw(logits)[0].item() for _ in range(3)]
    assert drawn == [1, 2, 0]  # 0 stands in the prompt; then each one drawn is weakened


def test_a_seed_repeats_and_rows_do_not_disturb_one_another() -> None:
    sampling = Sampling(temperature=1.0, seed=5)
    torch.manual_seed(0)
    logits = torch.randn(3, 50)
    together, alone = Sampler(sampling, [[]] * 3, CPU), Sampler(sampling, [[]], CPU)
    first = [together.draw(logits)[0] for _ in range(4)]
    assert [t[1].item() for t in first] == [alone.draw(logits[1:2])[0].item() for _ in range(4)]
    again = Sampler(sampling, [[]] * 3, CPU)
    again.draw(logits)
    again.keep(torch.tensor([0, 2]))
    assert again.draw(logits[[0, 2]])[0].tolist() == first[1][[0, 2]].tolist()
    free = {
        tuple(Sampler(Sampling(temperature=1.0), [[]] * 8, CPU).draw(logits[:1].expand(8, -1))[0].tolist())
        for _ in range(4)
    }
    assert len(free) > 1


def test_rounding_never_draws_an_impossible_token() -> None:
    logits = torch.tensor([[0.0, 0.0, -float("inf"), -float("inf")]])
    found = frequencies(Sampling(temperature=1.0), logits, [], draws=2000)
    assert found[2:].tolist() == [0, 0]
