"""PPO: every equation worked out another way, the loss of a batch by padded forwards, and what a rollout puts on its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.objectives.preferences import close, gradients, moved
from torch import Tensor

from luthier.core import catalog
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, InputError, NotFoundError, UnsupportedError
from luthier.core.message import user
from luthier.core.score import Answer, Target
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel, load_model
from luthier.objectives import _ppo, ppo
from luthier.objectives._rollout import Moment, PromptRow
from luthier.objectives._rows import Limits
from luthier.store.database import open_store
from luthier.store.models import find

WORDS = [{"name": "length", "unit": "words"}]
MOMENT = Moment(2, 0, 256)


def loaded(name: str, config: ppo.Config, method: str = "full") -> LoadedModel:
    torch.manual_seed(0)
    model = load_model(open_store(), name, dtype="fp32", device="cpu")
    model.module.requires_grad_(False)
    entry = catalog.load("methods", method)
    model = entry(model, entry.configure({}))
    ppo.heads(model, config)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    model.module.eval()
    return model


def prompts(model: LoadedModel, config: ppo.Config, *texts: str) -> list[PromptRow]:
    asked = texts or ("Where is my parcel?", "Refund?", "My lesson was cancelled twice. Who is the teacher now?")
    examples = tuple(Example(str(i), user(text), source=f"asked.jsonl:{i}") for i, text in enumerate(asked, 1))
    limits = Limits(model.context_length)
    return ppo.prepare(Dataset("asked", "chat", examples), model, PromptTemplate(), config, limits)


def plain(model: LoadedModel, row: Any, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """log pi and V of each token of the row's answer, and the logits there, by one ordinary forward."""
    ids = torch.tensor([[*row.prompt, *row.answer]])
    out = model.module(input_ids=ids, output_hidden_states=True)
    at = slice(len(row.prompt) - 1, -1)
    scores = out.logits[0, at] / temperature
    said = scores.log_softmax(-1).gather(1, torch.tensor(row.answer)[:, None])[:, 0]
    return said, model.head(out.hidden_states[-1][0, at])[:, 0], scores


def test_advantages_are_discounted_sums_of_temporal_differences() -> None:
    torch.manual_seed(1)
    rewards, values = torch.randn(7), torch.randn(7)
    gamma, weight = 0.9, 0.8
    found, returns = _ppo.advantages(rewards, values, gamma, weight)
    after = torch.cat([values[1:], torch.zeros(1)])
    deltas = rewards + gamma * after - values
    for t in range(7):
        wanted = sum((gamma * weight) ** k * deltas[t + k] for k in range(7 - t))
        torch.testing.assert_close(found[t], torch.as_tensor(wanted), rtol=0, atol=1e-6)
    torch.testing.assert_close(returns, found + values, rtol=0, atol=1e-6)
    _, whole = _ppo.advantages(rewards, values, 1.0, 1.0)  # then the return is the sum of what is still earned
    torch.testing.assert_close(whole, rewards.flip(0).cumsum(0).flip(0), rtol=0, atol=1e-6)


def test_rewards_of_tokens_are_the_divergence_and_at_the_end_the_reward() -> None:
    said, first = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -1.0, -0.5])
    found = _ppo.token_rewards(said, first, 0.2, 3.0)
    torch.testing.assert_close(found, torch.tensor([-0.1, 0.2, 3.0]), rtol=0, atol=1e-6)


def test_whitened_values_have_mean_0_and_unbiased_variance_1() -> None:
    values = torch.tensor([1.0, 4.0, -2.0, 0.5])
    found = _ppo.whitened(values)
    mean = float(values.sum()) / 4
    variance = float(((values - mean) ** 2).sum()) / 3
    torch.testing.assert_close(found, (values - mean) / variance**0.5, rtol=0, atol=1e-6)
    assert _ppo.whitened(torch.tensor([2.0])).tolist() == [2.0]


def test_clipped_losses_of_tokens() -> None:
    torch.manual_seed(3)
    old, new, gain = torch.randn(50) - 2, torch.randn(50) - 2, torch.randn(50)
    found, clipped = _ppo.policy_losses(new, old, gain, 0.2)
    for i in range(50):
        ratio = float(torch.exp(new[i] - old[i]))
        near = min(max(ratio, 0.8), 1.2)
        wanted = -min(float(gain[i]) * ratio, float(gain[i]) * near)
        assert float(found[i]) == pytest.approx(wanted, abs=1e-5, rel=1e-6)
        assert bool(clipped[i]) == (float(gain[i]) * near < float(gain[i]) * ratio - 1e-9)
    assert 0 < int(clipped.sum()) < 50
    values, before, wanted_values = torch.randn(50), torch.randn(50), torch.randn(50)
    losses = _ppo.value_losses(values, before, wanted_values, 0.3)
    for i in range(50):
        v, b, r = float(values[i]), float(before[i]), float(wanted_values[i])
        near = min(max(v, b - 0.3), b + 0.3)
        assert float(losses[i]) == pytest.approx(0.5 * max((v - r) ** 2, (near - r) ** 2), abs=1e-6, rel=1e-6)


def test_the_kl_coefficient_follows_its_target() -> None:
    assert _ppo.adapted(0.2, 6.6, 6.0) == pytest.approx(0.2 * 1.01)
    assert _ppo.adapted(0.2, 60.0, 6.0) == pytest.approx(0.2 * 1.02)
    assert _ppo.adapted(0.2, -3.0, 6.0) == pytest.approx(0.2 * 0.98)


@pytest.mark.parametrize("fixture", ["tiny_decoder", "tiny_gpt2"])
def test_a_rollout_says_what_the_equations_say(fixture: str, request: pytest.FixtureRequest) -> None:
    config = ppo.Config(
        rewards=WORDS, max_new_tokens=9, temperature=0.8, kl_coefficient=0.3, gamma=0.97, missing_eos_penalty=1.5
    )
    model = loaded(request.getfixturevalue(fixture), config)
    playing = ppo.rollout(model, config)
    rows = prompts(model, config)
    first = load_model(open_store(), request.getfixturevalue(fixture), dtype="fp32", device="cpu")
    moved(model)
    with torch.no_grad():
        experience = playing.play(rows, MOMENT)
        made = experience.rows
        assert [row.source for row in made] == [row.source for row in rows]
        gains, divergences, rewards = [], [], []
        for row in made:
            said, values, _ = plain(model, row, 0.8)
            ids = torch.tensor([[*row.prompt, *row.answer]])
            scores = first.module(input_ids=ids).logits[0, len(row.prompt) - 1 : -1] / 0.8
            reference = scores.log_softmax(-1).gather(1, torch.tensor(row.answer)[:, None])[:, 0]
            torch.testing.assert_close(row.log_probs, said, rtol=0, atol=1e-5)
            torch.testing.assert_close(row.values, values, rtol=0, atol=1e-5)
            assert model.renderer is not None
            ended = row.answer[-1] in model.renderer.stop_ids
            text = model.renderer.decode(row.answer[:-1] if ended else row.answer)
            entry = catalog.load("scorers", "length")
            reward = entry(Answer(text), Target(""), entry.configure({"unit": "words"})).value - (0 if ended else 1.5)
            earned = -0.3 * (said - reference)
            earned[-1] += reward
            gain, returns = _ppo.advantages(earned, values, 0.97, 0.95)
            torch.testing.assert_close(row.returns, returns, rtol=0, atol=1e-4)
            gains.append(gain)
            divergences.append(float((said - reference).sum()))
            rewards.append(reward)
        whitened = _ppo.whitened(torch.cat(gains))
        torch.testing.assert_close(torch.cat([row.advantages for row in made]), whitened, rtol=0, atol=1e-4)
    metrics = experience.metrics
    assert metrics["reward"] == pytest.approx(sum(rewards) / 3)
    assert metrics["kl"] == pytest.approx(sum(divergences) / 3, abs=1e-4) and abs(metrics["kl"]) > 1e-3
    assert metrics["answer_tokens"] == sum(len(row.answer) for row in made) / 3
    assert 0 <= metrics["truncated"] <= 1 and metrics["entropy"] > 0
    assert experience.epochs == 4 and experience.minibatches == 1


def texts(folder: Path) -> str:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"The courier called {i} times."}) + "\n" for i in range(5)))
    return str(path)


@pytest.mark.parametrize("fixture", ["tiny_decoder", "tiny_gpt2"])
def test_the_loss_of_a_batch_is_that_of_padded_forwards(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    config = ppo.Config(
        rewards=WORDS,
        max_new_tokens=9,
        temperature=0.8,
        clip=0.1,
        value_coefficient=0.4,
        entropy_coefficient=0.05,
        ptx={"path": texts(tmp_path), "weight": 0.7, "length": 8},
    )
    model = loaded(request.getfixturevalue(fixture), config)
    rows = prompts(model, config)
    with torch.no_grad():
        made = ppo.rollout(model, config).play(rows, MOMENT).rows
    moved(model)
    found = ppo.loss(model, ppo.collate(made, model), config)
    assert found.count == sum(len(row.answer) for row in made)
    found.value.backward()
    ours = gradients(model.module)
    policy, error, entropy, tokens = [], [], [], 0
    for row in made:
        said, values, scores = plain(model, row, 0.8)
        ratio = (said - row.log_probs).exp()
        policy.append(torch.max(-row.advantages * ratio, -row.advantages * ratio.clamp(0.9, 1.1)))
        near = values.clamp(row.values - 0.1, row.values + 0.1)
        error.append(0.5 * torch.max((values - row.returns) ** 2, (near - row.returns) ** 2))
        entropy.append(torch.distributions.Categorical(logits=scores).entropy())
    drawn = [document for row in made for document in row.text.documents]
    nll = []
    for document in drawn:
        ids = torch.tensor([document.ids])
        every = F.cross_entropy(model.module(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
        nll.append(every[document.start - 1 :])
        tokens += len(document.ids)
    assert len({id(row.text) for row in made}) == 3 and all(len(document.ids) <= 8 for document in drawn)
    of_text = torch.cat(nll).mean()
    wanted = torch.cat(policy).mean() + 0.4 * torch.cat(error).mean() - 0.05 * torch.cat(entropy).mean() + 0.7 * of_text
    torch.testing.assert_close(found.value, wanted, rtol=0, atol=2e-6)
    wanted.backward()
    close(ours, gradients(model.module))
    metrics = found.metrics
    assert metrics["policy_loss"] == pytest.approx(float(torch.cat(policy).mean()), abs=1e-6)
    assert metrics["value_loss"] == pytest.approx(float(torch.cat(error).mean()), abs=1e-5)
    assert metrics["ptx_loss"] == pytest.approx(float(of_text), abs=1e-5)
    assert 0 < metrics["clipped"] < 1 and metrics["moved"] > 0
    cost = sum(len(row.prompt) + len(row.answer) - 1 + row.text.length for row in made)
    assert sum(row.length for row in made) == cost


def test_before_the_first_update_nothing_has_moved(tiny_decoder: str) -> None:
    config = ppo.Config(rewards=WORDS, max_new_tokens=6)
    model = loaded(tiny_decoder, config, "lora")
    with torch.no_grad():
        experience = ppo.rollout(model, config).play(prompts(model, config), MOMENT)
    found = ppo.loss(model, ppo.collate(experience.rows, model), config)
    assert found.metrics["clipped"] == 0 and found.metrics["moved"] == pytest.approx(0, abs=1e-10)
    assert experience.metrics["kl"] == pytest.approx(0, abs=1e-5)
    assert experience.metrics["kl_coefficient"] == 0.05


def test_an_adaptive_coefficient_learns_from_training_alone(tiny_decoder: str) -> None:
    config = ppo.Config(rewards=WORDS, max_new_tokens=6, kl_coefficient=0.5, kl_target=2.0)
    model = loaded(tiny_decoder, config)
    playing, other = ppo.rollout(model, config), ppo.rollout(model, config)
    rows = prompts(model, config)
    with torch.no_grad():
        playing.play(rows, Moment(0, 0, 256, training=False))
        assert float(playing.state()["kl_coefficient"]) == 0.5
        playing.play(rows, Moment(0, 0, 256))
        assert float(playing.state()["kl_coefficient"]) == pytest.approx(0.5 * 0.98)  # as near as it was at first
        other.load_state(playing.state())
        assert other.play(rows, Moment(1, 0, 256)).metrics["kl_coefficient"] == pytest.approx(0.5 * 0.98)


def test_chats_keep_what_the_model_could_before(tiny_decoder: str, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "it is"}]}
        for i in range(2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ppo.Config(rewards=WORDS, max_new_tokens=4, ptx={"path": str(path), "length": 64})
    model = loaded(tiny_decoder, config)
    with torch.no_grad():
        made = ppo.rollout(model, config).play(prompts(model, config), MOMENT).rows
    assert all(row.text.weight == len(row.text.places) for row in made)
    assert ppo.loss(model, ppo.collate(made, model), config).metrics["ptx_loss"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give either reward"),
        ({"reward": "a", "rewards": ["exact"]}, "give either reward"),
        ({"reward": "a", "kl_target": 3, "kl_coefficient": 0}, "kl_target adapts"),
        ({"reward": "a", "clip": 1.5}, "clip"),
        ({"reward": "a", "epochs": 0}, "epochs"),
        ({"reward": "a", "temperature": 0}, "temperature"),
        ({"reward": "a", "ptx": {"path": "x", "weight": 0}}, "weight"),
        ({"reward": "a", "rate": 1}, "rate"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        catalog.load("objectives", "ppo").configure(options)


def test_what_it_reads_is_checked_before_any_work(tiny_decoder: str, tmp_path: Path) -> None:
    store = open_store()
    base = find(store, tiny_decoder)
    asked = Dataset("asked", "chat", (Example("1", user("a?"), source="asked.jsonl:1"),))

    def reads(**options: Any) -> Any:
        return ppo.reads(store, base, asked, PromptTemplate(), ppo.Config(**options))

    with pytest.raises(NotFoundError):
        reads(reward="nobody")
    with pytest.raises(UnsupportedError, match="is no reward model"):
        reads(reward=tiny_decoder)
    with pytest.raises(DataError, match=r"asked.jsonl:1: exact compares with a right answer"):
        reads(rewards=[{"name": "exact"}])
    labelled = tmp_path / "labels.jsonl"
    labelled.write_text('{"text": "a", "label": "b"}\n')
    with pytest.raises(InputError, match=r"objective.ptx.path must be a file of plain text or of chats"):
        reads(rewards=WORDS, ptx={"path": str(labelled)})
    found = reads(rewards=WORDS, ptx={"path": texts(tmp_path)})
    assert list(found) == ["ptx"] and found["ptx"].kind == "text"


def test_a_reward_that_is_no_number_names_its_row() -> None:
    with pytest.raises(DataError, match=r"answer to b.jsonl:2 is not a finite number"):
        _ppo.require_finite([1.0, float("nan")], ["a.jsonl:1", "b.jsonl:2"])
