"""Beam search against transformers' own, and against all answers there are."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tests.models.test_generate import CPU, SHAPE
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from luthier.core.engine import Sampling
from luthier.models.beam import BeamSearch
from luthier.models.sample import RowSampler

PROMPTS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [30, 31, 32, 33]]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def search(
    model: torch.nn.Module, prompts: list[list[int]], asked: Sampling, stops: tuple[int, ...], limits: list[int] | None = None, **kwargs: object
) -> BeamSearch:  # fmt: skip
    limits = limits or [asked.max_new_tokens] * len(prompts)
    rows = [RowSampler(asked, prompt) for prompt in prompts]
    found = BeamSearch(prompts, rows, limits, stops, CPU, **kwargs)
    while not found.done:
        found.step(model)
    return found


def reference(model: torch.nn.Module, prompt: list[int], beams: int, count: int, stops: tuple[int, ...]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, num_beams=beams,
        eos_token_id=list(stops), pad_token_id=stops[0],
    )  # fmt: skip
    new = out[0, len(prompt) :].tolist()
    ends = [place for place, token in enumerate(new) if token in stops]
    return new[: ends[0] + 1] if ends else new


@pytest.mark.parametrize("beams", [2, 4, 7])
@pytest.mark.parametrize("stops", [(3,), (3, 14, 15, 26, 35, 50)])
def test_answers_are_those_of_transformers(model: LlamaForCausalLM, beams: int, stops: tuple[int, ...]) -> None:
    asked = Sampling(max_new_tokens=14, beams=beams)
    together = search(model, PROMPTS, asked, stops).found
    for prompt, beam in zip(PROMPTS, together, strict=True):
        assert list(beam.tokens) == reference(model, prompt, beams, 14, stops)
    limits = [3, 14, 1, 9]
    cut = search(model, PROMPTS, asked, stops, limits, read_tokens=6).found
    for prompt, beam, limit in zip(PROMPTS, cut, limits, strict=True):
        assert list(beam.tokens) == reference(model, prompt, beams, limit, stops)


def test_with_enough_beams_the_best_of_all_answers_is_found() -> None:
    """Every answer of three tokens out of four, and every shorter one that ends, by the mean log-probability of its tokens."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "vocab_size": 4})).eval()
    prompt, stop = [3, 1], 2
    answers = {ids[: ids.index(stop) + 1] if stop in ids else ids for ids in product(range(4), repeat=3)}

    def mean(answer: tuple[int, ...]) -> float:
        with torch.no_grad():
            log_probs = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        return sum(log_probs[len(prompt) - 1 + n, t].item() for n, t in enumerate(answer)) / len(answer)

    best = max(answers, key=mean)
    (found,) = search(model, [prompt], Sampling(max_new_tokens=3, beams=16), (stop,)).found  # so many cut nothing
    assert found.tokens == best
    assert sum(found.log_probs) / len(best) == pytest.approx(mean(best), abs=1e-5)
    assert found.mean == pytest.approx(mean(best), abs=1e-5)


def test_models_with_windows() -> None:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5, attn_implementation="sdpa")).eval()
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1]]
    for prompt, beam in zip(prompts, search(model, prompts, Sampling(max_new_tokens=9, beams=3), (3,), full_attention=False).found, strict=True):  # fmt: skip
        assert list(beam.tokens) == reference(model, prompt, 3, 9, (3,))


class Even:
    """A constraint: even tokens only, four of them."""

    def __init__(self, taken: int = 0) -> None:
        self.taken = taken

    def mask(self, logits: torch.Tensor) -> None:
        logits[1::2] = -torch.inf

    def take(self, token: int) -> None:
        assert token % 2 == 0
        self.taken += 1

    @property
    def done(self) -> bool:
        return self.taken == 4

    def copy(self) -> Even:
        return Even(self.taken)


def test_constraints_and_penalties_follow_each_beam(model: LlamaForCausalLM) -> None:
    asked = Sampling(max_new_tokens=10, beams=4, frequency_penalty=2.0, logprobs=2)
    found = BeamSearch([PROMPTS[0]], [RowSampler(asked, PROMPTS[0], follower=Even())], [10], (3,), CPU)
    while not found.done:
        found.step(model)
    (beam,) = found.found
    assert len(beam.tokens) == len(beam.top) == 4 and all(token % 2 == 0 for token in beam.tokens)
    with torch.no_grad():
        logits = model(torch.tensor([[*PROMPTS[0], *beam.tokens]])).logits[0, 2:]
    score = 0.0
    for place, token in enumerate(beam.tokens):
        assert beam.log_probs[place] == pytest.approx(logits[place].log_softmax(-1)[token].item(), abs=1e-4)
        assert [t for t, _ in beam.top[place]] == logits[place].topk(2).indices.tolist()
        row = logits[place].clone()
        for said in beam.tokens[:place]:
            row[said] -= 2.0
        row[1::2] = -torch.inf
        score += row.log_softmax(-1)[token].item()
    assert beam.score == pytest.approx(score, abs=1e-4)
