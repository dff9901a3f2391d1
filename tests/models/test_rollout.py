"""Answers sampled from a model that is being trained: what they are, what the policy gave for them, and what they do not depend on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.core import catalog
from luthier.core.engine import Sampling
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import user
from luthier.models.fast import speed_up
from luthier.models.load import LoadedModel, load_model
from luthier.models.rollout import answering_mode, sample
from luthier.models.score import Row, score_rows
from luthier.store.database import open_store

QUESTIONS = ["Where is my parcel?", "Refund?", "I cannot sign in since I changed my password.", "我的包裹呢?"]


def loaded(name: str, method: str | None = None, **options: Any) -> LoadedModel:
    torch.manual_seed(0)
    model = load_model(open_store(), name, dtype="fp32", device="cpu")
    if method is None:
        return model
    model.module.requires_grad_(False)
    entry = catalog.load("methods", method)
    built: LoadedModel = entry(model, entry.configure(options))
    built.module.eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in built.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    speed_up(built.module)
    return built


def prompts(model: LoadedModel) -> list[list[int]]:
    assert model.renderer is not None
    return [model.renderer.prompt_ids(user(text)) for text in QUESTIONS]


def plain_log_probs(module: Any, prompt: list[int], answer: list[int], temperature: float) -> list[float]:
    with torch.no_grad():
        scores = module(input_ids=torch.tensor([[*prompt, *answer]])).logits[0] / temperature
    table = scores.log_softmax(-1)
    return [float(table[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]


@pytest.mark.parametrize("fixture", ["tiny_decoder", "tiny_gpt2"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_log_probabilities_are_those_of_the_policy_at_the_sampling_temperature(
    fixture: str, temperature: float, top_p: float, request: pytest.FixtureRequest
) -> None:
    model = loaded(request.getfixturevalue(fixture), "lora", rank=4)
    asked = prompts(model)
    found = sample(model, asked, Sampling(max_new_tokens=9, temperature=temperature, top_p=top_p, seed=3), copies=3)
    assert [len(answers) for answers in found] == [3] * len(asked)
    for prompt, answers in zip(asked, found, strict=True):
        assert len({tuple(answer.tokens) for answer in answers}) > 1
        for answer in answers:
            wanted = plain_log_probs(model.module, prompt, answer.tokens, temperature)
            assert answer.log_probs == pytest.approx(wanted, abs=1e-5)
            assert len(answer.tokens) == 9 or answer.ended


def test_greedy_answers_are_those_of_transformers(tiny_decoder: str) -> None:
    model = loaded(tiny_decoder, "lora", rank=4)
    for prompt, (answer,) in zip(
        prompts(model), sample(model, prompts(model), Sampling(max_new_tokens=12)), strict=True
    ):
        ids = torch.tensor([prompt])
        whole = model.module.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
        assert answer.tokens == whole[0, len(prompt) :].tolist()


def test_an_answer_depends_on_its_place_and_number_alone(tiny_decoder: str) -> None:
    model = loaded(tiny_decoder)
    asked = prompts(model)
    how = Sampling(max_new_tokens=8, temperature=1.0, seed=7)
    many = [[answer.tokens for answer in answers] for answers in sample(model, asked, how, copies=4)]
    assert many == [[a.tokens for a in answers] for answers in sample(model, asked, how, copies=4, max_batch_tokens=16)]
    alone = sample(model, asked, how, copies=1)
    assert [answers[0] for answers in many] == [answers[0].tokens for answers in alone]
    other = sample(model, asked, Sampling(max_new_tokens=8, temperature=1.0, seed=8), copies=4)
    assert many != [[answer.tokens for answer in answers] for answers in other]


def test_an_answer_ends_with_its_stop_token(tiny_decoder: str) -> None:
    model = loaded(tiny_decoder)
    assert model.renderer is not None
    how = Sampling(max_new_tokens=200, temperature=1.5, seed=1)
    answers = [answer for each in sample(model, prompts(model), how, copies=8) for answer in each]
    assert any(answer.ended for answer in answers) and not all(answer.ended for answer in answers)
    for answer in answers:
        stops = [token in model.renderer.stop_ids for token in answer.tokens]
        assert not any(stops[:-1]) and stops[-1] == answer.ended


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_soft_prompts_answer_too(tiny_decoder: str, method: str) -> None:
    model = loaded(tiny_decoder, method)
    asked = prompts(model)
    found = sample(model, asked, Sampling(max_new_tokens=4, temperature=1.0, seed=2), copies=2)
    wanted = score_rows(
        model.module,
        [Row(prompt, [answer.tokens for answer in answers]) for prompt, answers in zip(asked, found, strict=True)],
        model.device,
    )
    for answers, scores in zip(found, wanted, strict=True):
        assert [sum(answer.log_probs) for answer in answers] == pytest.approx(scores, abs=1e-4)


def test_the_mode_of_the_module_comes_back(tiny_decoder: str) -> None:
    model = loaded(tiny_decoder, "lora", rank=4, dropout=0.5)
    how = Sampling(max_new_tokens=6, temperature=1.0, seed=5)
    model.module.eval()
    wanted = sample(model, prompts(model), how)
    model.module.train()
    assert sample(model, prompts(model), how) == wanted  # without dropout
    assert model.module.training and all(part.training for part in model.module.modules())
    assert torch.is_grad_enabled()
    next(model.module.children()).eval()
    modes = [part.training for part in model.module.modules()]
    sample(model, prompts(model), how)
    assert [part.training for part in model.module.modules()] == modes and set(modes) == {True, False}
    model.module.train()
    with pytest.raises(ZeroDivisionError), answering_mode(model.module):
        assert not model.module.training and not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert model.module.training


def test_what_cannot_be_sampled(tiny_decoder: str, tiny_encoder: str, tiny_t5: str) -> None:
    model = loaded(tiny_decoder)
    with pytest.raises(InputError, match="prompt 2 has 512 tokens"):
        sample(model, [[5, 6], [5] * 512], Sampling())
    (answers,) = sample(model, [[5] * 509], Sampling(max_new_tokens=50, temperature=1.0, seed=0))
    assert len(answers[0].tokens) <= 3
    for name in (tiny_encoder, tiny_t5):
        with pytest.raises(UnsupportedError, match="samples answers from a decoder"):
            sample(loaded(name), [[5]], Sampling())
