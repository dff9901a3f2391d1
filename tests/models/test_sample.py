from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from luthier.core.engine import Sampling
from luthier.models.sample import Drawn, RowSampler, Sampler, draw

YES_MAYBE_NO = torch.tensor([[0.60, 0.31, 0.08, 0.01]]).log()


def frequencies(sampling: Sampling, logits: torch.Tensor, prompt: list[int], draws: int = 20_000) -> torch.Tensor:
    """How often each token comes, from many rows with generators of their own."""
    sampler = Sampler.alike(sampling, [prompt] * draws, range(draws))
    return torch.bincount(sampler.draw(logits.expand(draws, -1)).tokens, minlength=logits.shape[1]) / draws


def test_greedy_takes_the_likeliest_and_says_how_likely() -> None:
    drawn = Sampler.alike(Sampling(), [[]]).draw(YES_MAYBE_NO)
    assert drawn.tokens.tolist() == [0]
    assert drawn.log_probs.tolist() == pytest.approx([math.log(0.60)])
    assert drawn.top == {}


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
        Sampling(temperature=1.0, min_p=0.2),
        Sampling(temperature=1.5, min_p=0.05, top_k=6),
        Sampling(temperature=1.5, min_p=0.3, top_p=0.95),
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
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
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
    sampler = Sampler.alike(Sampling(repetition_penalty=10.0), [[0]])
    logits = torch.tensor([[5.0, 4.0, 3.0]])
    drawn = [sampler.draw(logits).tokens.item() for _ in range(3)]
    assert drawn == [1, 2, 0]  # 0 stands in the prompt; then each one drawn is weakened


def test_a_seed_repeats_and_rows_do_not_disturb_one_another() -> None:
    sampling = Sampling(temperature=1.0, seed=5)
    torch.manual_seed(0)
    logits = torch.randn(3, 50)
    together, alone = Sampler.alike(sampling, [[]] * 3), Sampler.alike(sampling, [[]])
    first = [together.draw(logits).tokens for _ in range(4)]
    assert [t[1].item() for t in first] == [alone.draw(logits[1:2]).tokens.item() for _ in range(4)]
    again = Sampler.alike(sampling, [[]] * 3)
    again.draw(logits)
    again.keep([0, 2])
    assert again.draw(logits[[0, 2]]).tokens.tolist() == first[1][[0, 2]].tolist()
    free = {
        tuple(Sampler.alike(Sampling(temperature=1.0), [[]] * 8).draw(logits[:1].expand(8, -1)).tokens.tolist())
        for _ in range(4)
    }
    assert len(free) > 1


def test_rounding_never_draws_an_impossible_token() -> None:
    logits = torch.tensor([[0.0, 0.0, -float("inf"), -float("inf")]])
    found = frequencies(Sampling(temperature=1.0), logits, [], draws=2000)
    assert found[2:].tolist() == [0, 0]


class Only:
    """A constraint that allows these tokens, one after the other."""

    def __init__(self, *tokens: int) -> None:
        self.left = list(tokens)

    def mask(self, logits: torch.Tensor) -> None:
        allowed = logits[self.left[0]].item()
        logits.fill_(-torch.inf)
        logits[self.left[0]] = allowed

    def take(self, token: int) -> None:
        assert token == self.left.pop(0)

    @property
    def done(self) -> bool:
        return not self.left

    def copy(self) -> Only:
        return Only(*self.left)


KINDS = [
    Sampling(),
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.7, seed=2, top_p=0.9),
    Sampling(temperature=1.4, seed=3, top_k=7, min_p=0.1),
    Sampling(temperature=2.0, seed=4, top_p=0.999),  # needs more than the likeliest few
    Sampling(temperature=2.0, seed=5, top_k=400, repetition_penalty=1.3),
    Sampling(temperature=1.0, seed=6, min_p=0.02, presence_penalty=1.5, frequency_penalty=0.5),
    Sampling(presence_penalty=2.0, logit_bias=((3, 5.0), (4, -100.0))),
    Sampling(temperature=1.0, seed=7, logprobs=3),
]


def test_rows_with_parameters_of_their_own_draw_as_alone() -> None:
    torch.manual_seed(2)
    steps = torch.randn(6, 500) * 2  # ties as in bf16
    steps = steps.bfloat16().float()

    def answer(kinds: list[Sampling]) -> list[list[int]]:
        rows = [RowSampler(kind, [1, 2, 3]) for kind in kinds]
        out: list[list[int]] = [[] for _ in rows]
        for logits in steps:
            for place, token in enumerate(draw(logits.expand(len(rows), -1), rows).tokens.tolist()):
                rows[place].take(token)
                out[place].append(token)
        return out

    together = answer(KINDS)
    assert together == [answer([kind])[0] for kind in KINDS] == answer(KINDS[::-1])[::-1]
    assert len({tuple(ids) for ids in together}) == len(KINDS)


def test_penalties_and_bias_are_their_equations() -> None:
    """mu[j] + bias[j] - c[j] * frequency - (c[j] > 0) * presence; the prompt does not count."""
    asked = Sampling(presence_penalty=0.7, frequency_penalty=0.4, logit_bias=((5, 2.5), (1, -100.0)))
    row, logits = RowSampler(asked, [0, 0, 2]), torch.linspace(-1, 1, 6)
    counts = [0] * 6
    for token in (2, 2, 4):
        row.take(token)
        counts[token] += 1
    found = logits.clone()
    row.adjust(found)
    bias = dict(asked.logit_bias)
    expected = [
        value + bias.get(j, 0.0) - counts[j] * 0.4 - (0.7 if counts[j] else 0.0)
        for j, value in enumerate(logits.tolist())
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_the_likeliest_tokens_are_reported_with_the_model_s_own_probabilities() -> None:
    logits = torch.tensor([[0.1, 2.0, 1.0, -1.0], [0.0, 0.0, 3.0, 1.0]])
    rows = [
        RowSampler(Sampling(temperature=1.0, seed=0, logprobs=2, logit_bias=((3, 50.0),))),
        RowSampler(Sampling(logprobs=0)),
    ]
    drawn: Drawn = draw(logits, rows)
    own = logits.log_softmax(-1)
    assert drawn.tokens.tolist() == [3, 2]
    assert drawn.log_probs.tolist() == pytest.approx([own[0, 3].item(), own[1, 2].item()], abs=1e-6)
    assert [token for token, _ in drawn.top[0]] == [1, 2]
    assert [value for _, value in drawn.top[0]] == pytest.approx([own[0, 1].item(), own[0, 2].item()], abs=1e-6)
    assert drawn.top[1] == []


@pytest.mark.parametrize("asked", [Sampling(), Sampling(temperature=2.0, top_p=0.5, presence_penalty=-2.0)])
def test_a_constraint_leaves_only_what_it_allows(asked: Sampling) -> None:
    torch.manual_seed(3)
    row, free = RowSampler(asked, follower=Only(7, 0, 7)), RowSampler(Sampling())
    found = []
    while not row.done:
        logits = torch.randn(2, 9)
        drawn = draw(logits, [row, free])
        assert drawn.tokens[1] == logits[1].argmax()
        found.append(int(drawn.tokens[0]))
        row.take(found[-1])
    assert found == [7, 0, 7] and not free.done


def test_a_number_can_be_looked_at_before_it_is_used() -> None:
    row, twin = (RowSampler(Sampling(temperature=1.0, seed=9)) for _ in range(2))
    ahead = [row.uniform(n) for n in (2, 0, 1)]
    following = []
    for _ in range(3):
        following.append(twin.uniform())
        twin.take(0)
    assert [ahead[1], ahead[2], ahead[0]] == following
