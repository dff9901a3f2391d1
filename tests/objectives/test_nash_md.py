"""Nash-MD: the mixture that answers as the rival, who is preferred, and the loss as the peer's equation has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.objectives.preferences import close, gradients, moved
from torch import Tensor

from luthier.core import catalog
from luthier.core.dataset import Dataset, Example
from luthier.core.engine import Sampling
from luthier.core.errors import InputError
from luthier.core.message import user
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel, load_model
from luthier.models.rollout import sample, sample_mixed
from luthier.objectives import nash_md
from luthier.objectives._rollout import Moment, PromptRow, Reference
from luthier.objectives._rows import Limits
from luthier.store.database import open_store

WORDS = [{"name": "length", "unit": "words"}]


def loaded(name: str, method: str = "full") -> tuple[LoadedModel, Any]:
    """A model with a method in it, and the module of the same base as it is in the store."""
    torch.manual_seed(0)
    first = load_model(open_store(), name, dtype="fp32", device="cpu").module
    model = load_model(open_store(), name, dtype="fp32", device="cpu")
    model.module.requires_grad_(False)
    entry = catalog.load("methods", method)
    model = entry(model, entry.configure({}))
    model.module.eval()
    return model, first


def prompts(model: LoadedModel, config: nash_md.Config) -> list[PromptRow]:
    asked = ("Where is my parcel?", "Refund?", "My lesson was cancelled twice. Who is the teacher now?")
    examples = tuple(Example(str(i), user(text), source=f"asked.jsonl:{i}") for i, text in enumerate(asked, 1))
    limits = Limits(model.context_length)
    return nash_md.prepare(Dataset("asked", "chat", examples), model, PromptTemplate(), config, limits)


def said(module: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Logits at each token of the answer, by one ordinary forward."""
    out: Tensor = module(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return out


def taken(scores: Tensor, answer: list[int]) -> Tensor:
    return scores.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize("method", ["full", "lora", "prompt"])
@pytest.mark.parametrize(("share", "temperature"), [(0.5, 1.0), (0.2, 0.7)])
def test_a_rival_is_sampled_from_the_geometric_mixture(
    tiny_decoder: str, method: str, share: float, temperature: float
) -> None:
    model, first = loaded(tiny_decoder, method)
    reference = Reference(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    asked = [row.prompt for row in prompts(model, nash_md.Config(rewards=WORDS))]
    how = Sampling(max_new_tokens=8, temperature=temperature, seed=4)
    with torch.no_grad():
        rivals = sample_mixed(model, asked, how, reference.answering, share, max_batch_tokens=8)
        for prompt, rival in zip(asked, rivals, strict=True):
            own = said(model.module, prompt, rival.tokens)[-len(rival.tokens) :]
            if method == "prompt":  # the peer's logits begin with those of the virtual tokens
                own = model.module(input_ids=torch.tensor([[*prompt, *rival.tokens]])).logits[0]
                own = own[-len(rival.tokens) - 1 : -1]
            mixed = (1 - share) * own + share * said(first, prompt, rival.tokens)
            wanted = taken(mixed / temperature, rival.tokens)
            torch.testing.assert_close(torch.tensor(rival.log_probs), wanted, rtol=0, atol=1e-5)


def test_the_ends_of_the_mixture_are_the_policy_and_the_reference(tiny_decoder: str) -> None:
    model, _ = loaded(tiny_decoder)
    asked = [row.prompt for row in prompts(model, nash_md.Config(rewards=WORDS))]
    how = Sampling(max_new_tokens=8, temperature=1.0, seed=4)
    reference = Reference(model)
    before = [answer.tokens for (answer,) in sample(model, asked, how)]
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    after = [answer.tokens for (answer,) in sample(model, asked, how)]
    assert before != after
    assert [a.tokens for a in sample_mixed(model, asked, how, reference.answering, 0.0)] == after
    assert [a.tokens for a in sample_mixed(model, asked, how, reference.answering, 1.0)] == before


@pytest.mark.parametrize("fixture", ["tiny_decoder", "tiny_gpt2"])
def test_the_loss_of_a_rollout_is_the_peers_equation(fixture: str, request: pytest.FixtureRequest) -> None:
    """TRL's NashMDTrainer._compute_losses on padded rows: beta (log-ratio . log pi) - (P - 1/2) log pi, summed over tokens."""
    config = nash_md.Config(rewards=WORDS, max_new_tokens=9, beta=0.3)
    model, first = loaded(request.getfixturevalue(fixture))
    playing = nash_md.rollout(model, config)
    moved(model)
    rows = prompts(model, config)
    with torch.no_grad():
        experience = playing.play(rows, Moment(1, 0, 256))
    made = experience.rows
    found = nash_md.loss(model, nash_md.collate(made, model), config)
    found.value.backward()
    ours = gradients(model.module)
    width = max(len(row.answer) for row in made)
    new, old = torch.zeros(3, width), torch.zeros(3, width)
    probability = torch.tensor([row.preferred for row in made])
    for number, row in enumerate(made):
        new[number, : len(row.answer)] = taken(said(model.module, row.prompt, row.answer), row.answer)
        with torch.no_grad():
            old[number, : len(row.answer)] = taken(said(first, row.prompt, row.answer), row.answer)
    ratio = (new - old).detach()
    wanted = (0.3 * (ratio * new).sum(1) - (probability - 0.5) * new.sum(1)).mean()
    torch.testing.assert_close(found.value, wanted, rtol=1e-6, atol=2e-6)
    wanted.backward()
    close(ours, gradients(model.module))
    assert found.count == 3
    assert experience.metrics["kl"] == pytest.approx(float(ratio.sum(1).mean()), abs=1e-4)
    assert experience.metrics["preferred"] == pytest.approx(float(probability.mean()))


def test_the_preferred_answer_is_the_one_with_the_higher_reward(tiny_decoder: str) -> None:
    config = nash_md.Config(rewards=WORDS, max_new_tokens=9, missing_eos_penalty=2.0)
    model, _ = loaded(tiny_decoder)
    with torch.no_grad():
        experience = nash_md.rollout(model, config).play(prompts(model, config), Moment(1, 0, 256))
    metrics = experience.metrics
    assert all(0 < row.preferred < 1 for row in experience.rows)
    assert {row.preferred for row in experience.rows} != {0.5}
    logits = torch.logit(torch.tensor([row.preferred for row in experience.rows]))
    assert float(logits.mean()) == pytest.approx(metrics["reward"] - metrics["rival_reward"], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "words"), [({}, "give either reward"), ({"reward": "a", "mixture": 1.5}, "mixture"), ({"reward": "a", "beta": -1}, "beta")]
)  # fmt: skip
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        catalog.load("objectives", "nash_md").configure(options)
