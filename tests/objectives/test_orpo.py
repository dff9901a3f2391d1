"""orpo against the paper's equations from separate forwards, and against TRL on the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.objectives.preferences import PAIRS, close, gradients, loaded, log_prob, pairs, trainer

from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel
from luthier.objectives._pairs import PairRow
from luthier.objectives._rows import Limits
from luthier.objectives.orpo import Config, collate, log1mexp, loss, prepare


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return loaded(tiny_decoder)


def rows_of(model: LoadedModel) -> list[PairRow]:
    return prepare(pairs(), model, PromptTemplate(), Config(), Limits(512))


@pytest.mark.parametrize("beta", [0.0, 0.1, 2.0])
def test_equals_the_equations_from_separate_forwards(model: LoadedModel, beta: float) -> None:
    rows = rows_of(model)
    losses = []
    for row in rows:
        good = (log_prob(model.module, row.prompt, row.chosen) / len(row.chosen)).exp()
        bad = (log_prob(model.module, row.prompt, row.rejected) / len(row.rejected)).exp()
        ratio = (good / (1 - good)) / (bad / (1 - bad))
        losses.append(-good.log() - beta * torch.sigmoid(ratio.log()).log())
    expected = torch.stack(losses).mean()
    expected.backward()
    wanted = gradients(model.module)
    found = loss(model, collate(rows, model), Config(beta=beta))
    found.value.backward()
    assert found.count == len(PAIRS)
    assert abs(float(found.value.detach()) - float(expected.detach())) < 1e-6
    close(gradients(model.module), wanted)


def test_equals_trl(model: LoadedModel, tmp_path: Path) -> None:
    """TRL's first term counts the prompt's tokens too, so that here each prompt is one token, which nothing predicts; and its mean is over
    the tokens of a batch, so that pairs are given to it one at a time."""
    rows = rows_of(model)
    for row in rows:
        row.prompt = row.prompt[:1]
    ours = loss(model, collate(rows, model), Config(beta=0.4))
    ours.value.backward()
    mine = gradients(model.module)
    theirs = trainer("orpo", model.module, model.tokenizer, tmp_path, beta=0.4)
    values, known = [], []
    for row in rows:
        inputs = {}
        for side, answer in (("chosen", row.chosen), ("rejected", row.rejected)):
            ids = torch.tensor([[*row.prompt, *answer]])
            inputs[f"{side}_input_ids"], inputs[f"{side}_attention_mask"] = ids, torch.ones_like(ids)
            inputs[f"{side}_labels"] = torch.tensor([[-100, *answer]])
        value, metrics = theirs.get_batch_loss_metrics(theirs.model, inputs)
        values.append(value)
        known.append(metrics)
    expected = torch.stack(values).mean()
    expected.backward()
    assert abs(float(ours.value.detach()) - float(expected.detach())) < 1e-6
    close(mine, gradients(model.module))
    for ours_name, name, sign in (
        ("likelihood_loss", "nll_loss", 1),
        ("odds_loss", "log_odds_ratio", -1),
        ("margin", "log_odds_chosen", 1),
        ("accuracy", "rewards/accuracies", 1),
    ):
        assert abs(ours.metrics[ours_name] - sign * sum(m[name] for m in known) / len(known)) < 1e-5


def test_log_of_one_minus_a_probability_near_its_ends() -> None:
    values = torch.tensor([-1e-6, -0.1, -0.6931, -0.7, -5.0, -80.0, 0.0], requires_grad=True)
    found = log1mexp(values)
    exact = torch.log(-torch.expm1(values.detach().double()[:-1]))
    torch.testing.assert_close(found[:-1].double(), exact, rtol=1e-6, atol=1e-12)
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(values.grad).all()  # type: ignore[arg-type]


def test_encoder_decoder_learns_from_pairs(tiny_t5: str) -> None:
    model = loaded(tiny_t5)
    batch = collate(rows_of(model), model)
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-2)
    values = []
    for _ in range(15):
        found = loss(model, batch, Config(beta=1.0))
        found.value.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append((float(found.value.detach()), found.metrics["accuracy"]))
    assert values[-1][0] < 0.7 * values[0][0]
    assert values[-1][1] == 1.0
