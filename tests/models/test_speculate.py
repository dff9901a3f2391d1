"""Guesses: where they come from, and that checking them is Leviathan's rule."""

from __future__ import annotations

import random

import pytest
import torch
from tests.models.test_generate import CPU, SHAPE, reference
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.core.engine import Sampling
from luthier.models.sample import RowSampler, draw
from luthier.models.speculate import MOST_ROWS, MOST_TOKENS, Draft, LookUp, Trust


class Row:
    def __init__(self, ids: list[int], sampling: Sampling | None = None) -> None:
        self.ids, self.sampler = list(ids), RowSampler(sampling or Sampling())


def followed(ids: list[int], most: int) -> list[int]:
    """What follows the last place where the longest end of the text (4 to 2 tokens) stood before."""
    for size in (4, 3, 2):
        places = [at for at in range(len(ids) - size) if ids[at : at + size] == ids[-size:]]
        if places and size < len(ids):
            return ids[places[-1] + size : places[-1] + size + most]
    return []


@pytest.mark.parametrize("seed", range(3))
def test_look_up_continues_as_the_text_did_before(seed: int) -> None:
    draw_, look_up = random.Random(seed), LookUp()
    row = Row([draw_.randrange(3)])
    guessed = 0
    for _ in range(200):
        most = draw_.randint(0, 6)
        ((found),) = look_up.guess([row], [most])
        assert found == (followed(row.ids, most) if most else [])
        guessed += len(found)
        row.ids += [draw_.randrange(3) for _ in range(draw_.randint(1, 3))]
    assert guessed > 200
    look_up.forget(row)
    assert not look_up._indexes


def test_trust_grows_while_guesses_are_right_and_pauses_when_all_are_wrong() -> None:
    trust = Trust()
    first = trust.most()
    trust.learn(first, first)
    assert trust.most() == 2 * first
    trust.learn(8, 6)
    assert trust.most() == 8
    trust.learn(8, 1)
    assert trust.most() == 4
    trust.learn(4, 0)
    paused = 0
    while trust.most() == 0:
        paused += 1
    assert paused == 8 and trust.most() == 2
    for _ in range(9):
        trust.learn(trust.tokens, trust.tokens)
    assert trust.most() == MOST_TOKENS


def test_a_guess_is_kept_with_its_probability_and_replaced_by_the_rest() -> None:
    """Leviathan et al. 2023, algorithm 1, for q that is 1 at the guess: kept with min(1, p / q), else from norm(max(0, p - q))."""
    logits = torch.tensor([[0.5, 1.2, -0.4, 0.9, -2.0]])
    sampling = Sampling(temperature=0.8, top_k=4)
    p = (logits / 0.8).masked_fill(logits < -1.0, -torch.inf).softmax(-1)[0]
    count, guess = 40_000, 3
    rows = [RowSampler(sampling, seed=seed) for seed in range(count)]
    drawn = draw(logits.expand(count, -1), rows).tokens
    kept = drawn == guess
    q = torch.nn.functional.one_hot(torch.tensor(guess), 5).float()
    assert kept.float().mean().item() == pytest.approx(min(1.0, (p / q)[guess].item()), abs=0.01)
    rest = (p - q).clamp(min=0.0)
    found = torch.bincount(drawn[~kept], minlength=5) / (~kept).sum()
    torch.testing.assert_close(found, rest / rest.sum(), atol=0.012, rtol=0.0)


def model(seed: int, **changes: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(SHAPE | changes))).eval()


def test_a_draft_says_what_its_model_would_answer() -> None:
    """However the rows went on in the meantime; each row in a slot of its own, given back when it ends."""
    draft_model, pick = model(3, num_hidden_layers=1), random.Random(0)
    draft = Draft(draft_model, CPU, 200)
    rows = [Row([pick.randrange(71) for _ in range(pick.randint(1, 12))]) for _ in range(3)]
    for _ in range(12):
        most = [pick.randint(0, 5) for _ in rows]
        for row, count, guess in zip(rows, most, draft.guess(rows, most), strict=True):
            assert guess == (reference(draft_model, row.ids, count) if count else [])
            row.ids += guess[: pick.randint(0, len(guess))]
            row.ids.append(pick.randrange(71))
    for n in range(3 * MOST_ROWS):  # more than it has slots
        draft.guess([Row([n, n + 1])], [2])
    assert len(draft._rows) <= 2 * MOST_ROWS
    for row in list(draft._rows):
        draft.forget(row)
    assert draft._slots.free == 2 * MOST_ROWS


def test_a_draft_draws_by_the_numbers_of_the_answer() -> None:
    """The same model as a draft is always right, at any temperature; and nothing of it is used up."""
    same = model(0)
    draft = Draft(same, CPU, 200)
    sampling = Sampling(temperature=1.3, top_p=0.9, seed=5, max_new_tokens=12)
    row, plain = Row([4, 5, 6], sampling), Row([4, 5, 6], sampling)
    ((guess),) = draft.guess([row], [12])
    for token in guess:
        with torch.no_grad():
            logits = same(torch.tensor([plain.ids])).logits[:, -1]
        assert draw(logits, [plain.sampler]).tokens.item() == token
        plain.sampler.take(token)
        plain.ids.append(token)
    assert len(set(guess)) > 3
    assert (
        draft.guess([Row(list(range(71)) * 2 + list(range(56)), sampling)], [9])[0].__len__() == 2
    )  # the context ends
