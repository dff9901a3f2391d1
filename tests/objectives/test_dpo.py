"""dpo against the paper's equation from separate forwards, and against TRL on the same tokens and reference log-probabilities."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.objectives.preferences import (
    PAIRS,
    close,
    example,
    gradients,
    loaded,
    log_prob,
    moved,
    padded,
    pairs,
    trainer,
)

from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.core.message import Message, user
from luthier.core.run import no_progress
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel, load_model
from luthier.objectives import dpo, orpo
from luthier.objectives._pairs import PairRow
from luthier.objectives._rows import Limits
from luthier.objectives.dpo import Config, before, collate, loss, prepare
from luthier.store.database import open_store


def rows_of(model: LoadedModel, data: Dataset | None = None, limits: Limits | None = None) -> list[PairRow]:
    return prepare(pairs() if data is None else data, model, PromptTemplate(), Config(), limits or Limits(512))


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return loaded(tiny_decoder)


def test_which_tokens_bear_loss(model: LoadedModel) -> None:
    """The template's words are the prompt's; the answer is what the assistant says, to the end of its turn."""
    row = rows_of(model)[1]
    token = model.tokenizer.convert_ids_to_tokens
    text = model.tokenizer.decode
    assert text(row.prompt).endswith("<|im_start|>user\nRefund?<|im_end|>\n<|im_start|>assistant\n")
    assert text(row.chosen) == "Yes, today.<|im_end|>"
    assert text(row.rejected) == "Ask.<|im_end|>"
    assert token(row.chosen[-1]) == token(row.rejected[-1]) == "<|im_end|>"
    assert row.length == len(row.prompt) + len(row.chosen) + len(row.rejected) - 2
    assert row.source == "pairs.jsonl:2"


@pytest.mark.parametrize(
    ("options", "peer"),
    [
        ({}, {"loss_type": ["sigmoid"]}),
        ({"beta": 0.5}, {"loss_type": ["sigmoid"]}),
        ({"loss": "hinge"}, {"loss_type": ["hinge"]}),
        ({"loss": "ipo", "beta": 0.7}, {"loss_type": ["ipo"]}),
        ({"beta": 2.0, "length_normalised": True}, {"loss_type": ["sigmoid_norm"]}),
    ],
)
def test_equals_trl(
    model: LoadedModel, tiny_decoder: str, tmp_path: Path, options: dict[str, object], peer: dict[str, object]
) -> None:
    config = Config(**options)
    rows = rows_of(model)
    before(model, rows, config, no_progress)
    moved(model)
    ours = loss(model, collate(rows, model), config)
    ours.value.backward()
    mine = gradients(model.module)

    theirs = trainer("dpo", model.module, model.tokenizer, tmp_path, beta=config.beta, **peer)
    theirs.precompute_ref_logps = True
    inputs = padded([(r.prompt, r.chosen) for r in rows] + [(r.prompt, r.rejected) for r in rows])
    for side, name in enumerate(("ref_chosen_logps", "ref_rejected_logps")):
        inputs[name] = torch.tensor([r.reference[side] for r in rows if r.reference])
    value = theirs._compute_loss(theirs.model, inputs, False)
    value.backward()
    assert ours.count == len(rows)
    assert abs(float(ours.value.detach()) - float(value.detach())) < 1e-6
    close(mine, gradients(model.module))
    if not config.normalises:
        known = {key: values[-1] for key, values in theirs._metrics["eval"].items()}
        assert math.isclose(ours.metrics["reward_chosen"], known["rewards/chosen"], abs_tol=1e-5)
        assert math.isclose(ours.metrics["reward_rejected"], known["rewards/rejected"], abs_tol=1e-5)
        assert math.isclose(ours.metrics["margin"], known["rewards/margins"], abs_tol=1e-5)
        assert ours.metrics["accuracy"] == known["rewards/accuracies"]


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_equals_the_equation_from_separate_forwards(model: LoadedModel, noise: float, normalised: bool) -> None:
    config = Config(beta=0.3, label_smoothing=noise, length_normalised=normalised)
    rows = rows_of(model)
    with torch.no_grad():
        reference = [[log_prob(model.module, r.prompt, a) for a in (r.chosen, r.rejected)] for r in rows]
    before(model, rows, config, no_progress)
    for row, wanted in zip(rows, reference, strict=True):
        torch.testing.assert_close(torch.tensor(row.reference), torch.stack(wanted), rtol=1e-6, atol=1e-5)
    moved(model)
    losses = []
    for row, (good, bad) in zip(rows, reference, strict=True):
        up = log_prob(model.module, row.prompt, row.chosen) - good
        down = log_prob(model.module, row.prompt, row.rejected) - bad
        if normalised:
            up, down = up / len(row.chosen), down / len(row.rejected)
        right = torch.sigmoid(0.3 * (up - down))
        losses.append(-(1 - noise) * right.log() - noise * (1 - right).log())
    expected = torch.stack(losses).mean()
    expected.backward()
    wanted_gradients = gradients(model.module)
    found = loss(model, collate(rows, model), config)
    found.value.backward()
    assert abs(float(found.value.detach()) - float(expected.detach())) < 2e-6
    close(gradients(model.module), wanted_gradients)


def test_ipo_as_the_paper_writes_it(model: LoadedModel) -> None:
    """Equation 17 has sums; means are what its authors compute, and the default."""
    row = rows_of(model)[0]
    row.reference = (-3.0, -5.0)
    with torch.no_grad():
        up = float(log_prob(model.module, row.prompt, row.chosen)) + 3.0
        down = float(log_prob(model.module, row.prompt, row.rejected)) + 5.0
        sums = loss(model, collate([row], model), Config(loss="ipo", beta=0.2, length_normalised=False))
        means = loss(model, collate([row], model), Config(loss="ipo", beta=0.2))
    assert math.isclose(float(sums.value), (up - down - 2.5) ** 2, rel_tol=1e-5)
    assert math.isclose(float(means.value), (up / len(row.chosen) - down / len(row.rejected) - 2.5) ** 2, rel_tol=1e-5)


def test_the_reference_is_the_untrained_model_bit_for_bit(model: LoadedModel, tiny_decoder: str) -> None:
    """With an adapter in, it says what a model loaded for the purpose says, and before the first step nothing is preferred."""
    from luthier.core.catalog import load

    lora = load("methods", "lora")
    torch.manual_seed(0)
    tuned = lora(loaded(tiny_decoder, trained=False), lora.configure())
    rows, separate = rows_of(tuned), rows_of(model)
    before(tuned, rows, Config(), no_progress)
    before(model, separate, Config(), no_progress)
    assert [row.reference for row in rows] == [row.reference for row in separate]
    with torch.no_grad():
        found = loss(tuned, collate(sorted(rows, key=lambda r: -r.length), tuned), Config())
    assert float(found.value) == pytest.approx(math.log(2), abs=1e-7)
    assert found.metrics["accuracy"] == 0.5
    assert found.metrics["margin"] == 0


def test_a_soft_prompt_is_no_part_of_the_reference(model: LoadedModel, tiny_decoder: str) -> None:
    from luthier.core.catalog import load

    soft = load("methods", "prompt")
    torch.manual_seed(0)
    tuned = soft(loaded(tiny_decoder, trained=False), soft.configure({"tokens": 4}))
    rows, plain = rows_of(tuned), rows_of(model)
    before(tuned, rows, Config(), no_progress)
    before(model, plain, Config(), no_progress)
    assert [row.reference for row in rows] == [row.reference for row in plain]
    with torch.no_grad():
        found = loss(tuned, collate(rows, tuned), Config())
    assert abs(found.metrics["margin"]) > 0


def test_a_prompt_goes_through_the_model_once(model: LoadedModel) -> None:
    row = rows_of(model)[0]
    row.reference = (0.0, 0.0)
    seen = []
    model.module.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    loss(model, collate([row], model), Config())
    assert seen == [row.length]


def test_encoder_decoder(tiny_t5: str) -> None:
    model = loaded(tiny_t5)
    rows = rows_of(model)
    before(model, rows, Config(), no_progress)
    opening = model.renderer.opening  # type: ignore[union-attr]
    moved(model)
    found = loss(model, collate(rows, model), Config(beta=0.5))

    def said(row: PairRow, answer: list[int]) -> torch.Tensor:
        shown = torch.tensor([[*opening, *answer[:-1]]])
        scores = model.module(input_ids=torch.tensor([row.prompt]), decoder_input_ids=shown).logits[0].log_softmax(-1)
        first = len(opening) - 1
        return torch.stack([scores[first + i, token] for i, token in enumerate(answer)]).sum()

    margins = []
    for row in rows:
        assert row.reference is not None
        margins.append(said(row, row.chosen) - row.reference[0] - said(row, row.rejected) + row.reference[1])
    expected = -F.logsigmoid(0.5 * torch.stack(margins)).mean()
    assert abs(float(found.value.detach()) - float(expected.detach())) < 1e-5


def test_bf16_reference_and_model_agree_before_training(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="bf16", device="cpu")
    rows = rows_of(model)
    before(model, rows, Config(), no_progress)
    with torch.no_grad():
        found = loss(model, collate(sorted(rows, key=lambda r: -r.length), model), Config())
    assert found.metrics["margin"] == 0


BAD = [
    ((("a", "b", None),), "compares a chosen with a rejected answer; one is missing"),
    ((("a", "b", "c"), ("a", "b", "b")), "chosen and rejected are the same tokens"),
    ((("a", "b", " "),), "an answer is empty"),
]


@pytest.mark.parametrize(("rows", "problem"), BAD)
@pytest.mark.parametrize("objective", [dpo, orpo])
def test_pairs_that_teach_nothing_are_refused(
    model: LoadedModel, rows: tuple[tuple[str, str, str]], problem: str, objective: object
) -> None:
    with pytest.raises(DataError, match=problem + rf".*pairs\.jsonl:{len(rows)}"):
        objective.prepare(pairs(rows), model, PromptTemplate(), objective.Config(), Limits(512))  # type: ignore[attr-defined]


def test_further_bad_input(model: LoadedModel, tiny_encoder: str) -> None:
    turn = Message("assistant", "b")
    several = Example("1", user("a"), chosen=(turn, *user("c"), turn), rejected=(turn,), source="pairs.jsonl:7")
    with pytest.raises(DataError, match=r"one turn of the assistant \(pairs\.jsonl:7\)"):
        rows_of(model, Dataset("pairs", "preference", (several,)))
    bare = Example("1", (), chosen=(turn,), rejected=(Message("assistant", "c"),), source="pairs.jsonl:8")
    with pytest.raises(DataError, match=r"there is no prompt \(pairs\.jsonl:8\)"):
        rows_of(model, Dataset("pairs", "preference", (bare,)))
    with pytest.raises(UnsupportedError, match="kind preference; talk is chat"):
        rows_of(model, Dataset("talk", "chat", ()))
    with pytest.raises(UnsupportedError, match="needs a decoder or an encoder-decoder"):
        rows_of(loaded(tiny_encoder))
    with pytest.raises(InputError, match="label_smoothing is for loss sigmoid"):
        from luthier.core.catalog import load

        load("objectives", "dpo").configure({"loss": "ipo", "label_smoothing": 0.1})


def test_rows_over_the_context(model: LoadedModel) -> None:
    whole = rows_of(model)
    lengths = [len(r.prompt) + max(len(r.chosen), len(r.rejected)) for r in whole]
    most = max(lengths) - 2
    with pytest.raises(DataError, match=rf"longer than the model's context of {most} tokens"):
        rows_of(model, limits=Limits(most))
    dropping, cutting = Limits(most, "drop"), Limits(most, "truncate")
    assert len(rows_of(model, limits=dropping)) == len(PAIRS) - len(dropping.dropped) < len(PAIRS)
    cut = rows_of(model, limits=cutting)
    assert len(cut) == len(PAIRS) and len(cutting.truncated) == len(dropping.dropped)
    assert all(len(r.prompt) + max(len(r.chosen), len(r.rejected)) <= most for r in cut)
    assert [r.prompt for r in cut] == [r.prompt for r in whole]
    prompt = len(whole[1].prompt)
    data = Dataset("pairs", "preference", (example(1, "Refund?", "Yes", "Yellow"),))
    for room, kept in (
        (0, 0),
        (1, 0),
        (4, 1),
    ):  # nothing is left after the prompt; the same is left of both; they differ
        limits = Limits(prompt + room, "truncate")
        assert len(rows_of(model, data, limits)) == kept
        assert len(limits.dropped) == 1 - kept
