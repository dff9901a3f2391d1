"""grpo against TRL's loss on the same tokens, log-probabilities and rewards, for each way to make a mean; what is drawn; rewards that rise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.preferences import close, gradients, loaded, moved
from torch import Tensor

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.errors import DataError, InputError, NotFoundError, UnsupportedError
from luthier.core.message import user
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel
from luthier.models.rollout import Answer
from luthier.models.score import Row
from luthier.objectives import grpo
from luthier.objectives._log_probs import answer_log_probs, answer_token_log_probs
from luthier.objectives._rollout import Moment, PromptRow
from luthier.objectives._rows import Limits
from luthier.objectives.grpo import Config, GroupRow, advantages_of, collate, learnt_from, loss, prepare, rollout
from luthier.training.tune import TuneResult, tune

ASKED = ["Where is my parcel?", "Refund?", "Who is the teacher now?", "我的包裹呢?"]
SHORT = {"name": "overlong", "most": 1, "margin": 40, "unit": "characters"}
NONE = Dataset("none", "question", ())


def questions(asked: Sequence[str] = ASKED) -> Dataset:
    return Dataset(
        "q",
        "question",
        tuple(Example(str(i), user(q), target="e", source=f"q.jsonl:{i}") for i, q in enumerate(asked, 1)),
    )


def config(**options: Any) -> Config:
    return Config(**{"rewards": [SHORT], "group_size": 4, "max_new_tokens": 9, **options})


def prompts(model: LoadedModel, given: Config) -> list[PromptRow]:
    return prepare(questions(), model, PromptTemplate(), given, Limits(512))


def drawn(model: LoadedModel, rows: Sequence[PromptRow], seed: int = 3) -> list[list[Answer]]:
    """Answers of many lengths, some of which did not end, with log-probabilities that are not those of the model as it is."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for number, _ in enumerate(rows):
        group = []
        for place in range(4):
            size = 1 + int(torch.randint(9, (), generator=generator))
            tokens = torch.randint(3, 380, (size,), generator=generator).tolist()
            old = (-6.0 + 0.4 * torch.randn(size, generator=generator)).tolist()
            group.append(Answer(tokens, old, ended=(number + place) % 3 != 0))
        out.append(group)
    return out


def plain_log_probs(
    model: LoadedModel, prompt: Sequence[int], answer: Sequence[int], temperature: float = 1.0
) -> Tensor:
    """One plain forward over one row, without padding."""
    scores = model.module(input_ids=torch.tensor([[*prompt, *answer]])).logits[0] / temperature
    return torch.stack([scores.log_softmax(-1)[len(prompt) - 1 + i, token] for i, token in enumerate(answer)])


def peer(model: LoadedModel, folder: Path, **settings: Any) -> Any:
    import datasets
    import trl

    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        bf16=False,
        report_to=[],
        use_cpu=True,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=9,
        disable_dropout=True,
        **settings,
    )
    made = trl.GRPOTrainer(
        model.module,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=datasets.Dataset.from_list([{"prompt": "a"}] * 4),
        processing_class=model.tokenizer,
    )
    made.current_gradient_accumulation_steps = 1
    model.module.eval()
    model.module.zero_grad()
    return made


def peer_inputs(
    rows: Sequence[PromptRow],
    groups: Sequence[Sequence[Answer]],
    advantages: Tensor,
    reference: Sequence[Tensor],
    masked: bool,
) -> dict[str, Tensor]:
    """As TRL pads them: prompts on the left, answers on the right."""
    flat = [(row.prompt, answer) for row, group in zip(rows, groups, strict=True) for answer in group]
    left, right = max(len(p) for p, _ in flat), max(len(a.tokens) for _, a in flat)
    out: dict[str, list[list[float]]] = {
        key: []
        for key in (
            "prompt_ids",
            "prompt_mask",
            "completion_ids",
            "completion_mask",
            "old_per_token_logps",
            "ref_per_token_logps",
        )
    }
    for (prompt, answer), ref in zip(flat, reference, strict=True):
        before, after = [0] * (left - len(prompt)), [0] * (right - len(answer.tokens))
        told = int(answer.ended or not masked)
        out["prompt_ids"].append([*before, *prompt])
        out["prompt_mask"].append([*before, *[1] * len(prompt)])
        out["completion_ids"].append([*answer.tokens, *after])
        out["completion_mask"].append([told] * len(answer.tokens) + after)
        out["old_per_token_logps"].append([*answer.log_probs, *after])
        out["ref_per_token_logps"].append([*ref.tolist(), *after])
    made = {key: torch.tensor(value) for key, value in out.items()}
    return made | {"advantages": advantages.float().flatten(), "num_items_in_batch": made["completion_mask"].sum()}


def ours(model: LoadedModel, rows: Sequence[GroupRow], given: Config, size: int | None = None) -> Tensor:
    """The update's loss as the loop adds it up over micro-batches of ``size`` rows."""
    weight, step = sum(row.weight for row in rows), size or len(rows)
    total = torch.zeros(())
    for start in range(0, len(rows), step):
        part = loss(model, collate(rows[start : start + step], model), given)
        total = total + part.value * (part.count / weight)
    return total


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return loaded(tiny_decoder)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_equal_to_trl(model: LoadedModel, tmp_path: Path, kind: str, masked: bool, unbiased: bool) -> None:
    given = config(
        unbiased_kl=unbiased,
        loss=kind,
        beta=0.04,
        epsilon=0.1,
        epsilon_high=0.28,
        mask_truncated=masked,
        temperature=0.8,
    )
    rows = prompts(model, given)
    groups = drawn(model, rows)
    reference = [
        plain_log_probs(model, row.prompt, answer.tokens, 0.8).detach()
        for row, group in zip(rows, groups, strict=True)
        for answer in group
    ]
    moved(model)
    rewards = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    advantages = advantages_of(rewards, "group")
    trainer = peer(
        model,
        tmp_path,
        loss_type=kind,
        beta=0.04,
        epsilon=0.1,
        epsilon_high=0.28,
        temperature=0.8,
        use_bias_correction_kl=unbiased,
    )
    theirs = trainer._compute_loss(model.module, peer_inputs(rows, groups, advantages, reference, masked))
    theirs.backward()
    wanted = gradients(model.module)

    for budget, size in ((100_000, None), (40, 1)):  # whole groups at once; a few answers at a time
        made = learnt_from(rows, groups, advantages.flatten().tolist(), given, budget)
        known = {tuple(a.tokens): r for a, r in zip([a for g in groups for a in g], reference, strict=True)}
        for row in made:
            row.reference = [v for answer in row.answers for v in known[tuple(answer)].tolist()]
        value = ours(model, made, given, size)
        value.backward()
        assert float(value) == pytest.approx(float(theirs), abs=1e-6)
        close(gradients(model.module), wanted)
    assert len(made) > 4


@pytest.mark.parametrize("by", ["group", "batch", "none"])
def test_advantages_equal_trls(by: str) -> None:
    from trl.trainer.utils import nanstd

    rewards = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rewards[1] = 0.5  # all alike: no answer is better
    above = rewards - rewards.nanmean(1, keepdim=True)
    wanted = {
        "group": above / (nanstd(rewards, dim=1)[:, None] + 1e-4),
        "batch": above / (nanstd(rewards) + 1e-4),
        "none": above,
    }
    torch.testing.assert_close(advantages_of(rewards, by), wanted[by], rtol=0, atol=1e-7)
    assert advantages_of(rewards, by)[1].eq(0).all()


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_answers_that_move_nothing_are_counted_without_a_forward(model: LoadedModel, kind: str) -> None:
    """Without a reference, a group of equal rewards is not run; the loss is the one of all answers."""
    given = config(loss=kind, beta=0.0)
    rows = prompts(model, given)
    groups = drawn(model, rows)
    better = torch.randn(16, generator=torch.Generator().manual_seed(4)).tolist()
    better[4:8] = [0.0] * 4
    made = learnt_from(rows, groups, better, given, 100_000)
    assert [row.source for row in made] == ["q.jsonl:1", "q.jsonl:3", "q.jsonl:4"]
    each = []
    for at, (row, answer) in enumerate((r, a) for r, g in zip(rows, groups, strict=True) for a in g):
        ratio = (plain_log_probs(model, row.prompt, answer.tokens) - torch.tensor(answer.log_probs)).exp()
        each.append(-torch.min(ratio * better[at], ratio.clamp(0.8, 1.2) * better[at]))
    tokens = sum(map(len, each))
    sums = torch.stack([one.sum() for one in each])
    wanted = {
        "grpo": torch.stack([one.mean() for one in each]).mean(),
        "dr_grpo": sums.sum() / (16 * 9),
        "dapo": sums.sum() / tokens,
        "bnpo": sums.sum() / tokens,
    }[kind]
    assert float(ours(model, made, given).detach()) == pytest.approx(float(wanted.detach()), abs=1e-6)
    nothing = learnt_from(rows, groups, [0.0] * 16, given, 100_000)
    assert len(nothing) == 1 and float(ours(model, nothing, given).detach()) == 0.0


@pytest.mark.parametrize("name", ["tiny_decoder", "tiny_gpt2"])
def test_log_probabilities_of_tokens_are_in_the_order_of_the_answers(request: pytest.FixtureRequest, name: str) -> None:
    model = loaded(request.getfixturevalue(name))
    rows = [Row([5, 6, 7], [[8, 9], [8, 9, 10], [11], [8, 12]]), Row([7] * 20, [[9, 9, 9], [4]])]
    for temperature in (1.0, 0.5):
        found = answer_token_log_probs(model, rows, temperature)
        wanted = [plain_log_probs(model, row.prompt, each, temperature) for row in rows for each in row.continuations]
        torch.testing.assert_close(found, torch.cat(wanted), rtol=0, atol=2e-6)
    sums = answer_log_probs(model, rows)
    torch.testing.assert_close(
        sums,
        torch.stack([w.sum() for w in [plain_log_probs(model, r.prompt, e) for r in rows for e in r.continuations]]),
        rtol=0,
        atol=1e-5,
    )


def test_what_a_rollout_draws_is_what_the_policy_says(model: LoadedModel) -> None:
    """Ratios are 1 before the first update, and the same seed draws the same."""
    given = config(temperature=0.7)
    rows = prompts(model, given)
    played = rollout(model, given).play(rows, Moment(0, 0, 2048))
    again = rollout(model, given).play(rows, Moment(0, 0, 2048))
    other = rollout(model, given).play(rows, Moment(1, 0, 2048))
    assert [row.answers for row in played.rows] == [row.answers for row in again.rows]
    assert [row.answers for row in played.rows] != [row.answers for row in other.rows]
    found = loss(model, collate(played.rows, model), given)
    assert found.metrics["clipped"] == 0.0 and found.metrics["kl"] == pytest.approx(0, abs=1e-9)
    for row in played.rows:
        now = answer_token_log_probs(model, [Row(row.prompt, row.answers)], 0.7)
        torch.testing.assert_close(now.detach(), torch.tensor(row.old), rtol=0, atol=1e-5)
    assert {"reward", "reward_std", "equal_groups", "answer_tokens", "truncated"} <= set(played.metrics)


def train(name: str, base: str, sink: Any = None, **changes: Any) -> TuneResult:
    options = {
        "name": "grpo",
        "rewards": [SHORT],
        "group_size": 8,
        "max_new_tokens": 12,
        **changes.pop("objective", {}),
    }
    values = {
        "name": name,
        "model": base,
        "method": "full",
        "objective": options,
        "train": {
            "max_steps": 30,
            "epochs": 30,
            "learning_rate": 1e-2,
            "batch_size": 4,
            "dtype": "fp32",
            "device": "cpu",
            "schedule": "constant",
            "warmup": 0,
            **changes.pop("train", {}),
        },
    }
    return tune(values, splits=Splits(questions(), NONE, NONE), metrics=sink, **changes)


def test_the_reward_rises(tiny_decoder: str) -> None:
    records: list[Mapping[str, Any]] = []
    train("risen", tiny_decoder, records.append, objective={"beta": 0.0, "epochs": 2, "minibatches": 2})
    first, last = (sum(r["reward"] for r in part) / 3 for part in (records[:3], records[-3:]))
    assert last > first + 0.15, (first, last)
    assert all(0 <= record["clipped"] <= 1 for record in records)


class Stopped(Exception):
    """Raised by a sink to end a training in the middle."""


def test_a_resumed_run_is_bit_equal(tiny_decoder: str) -> None:
    def weights(result: TuneResult) -> Any:
        return result.model.digest

    settings: dict[str, Any] = {"train": {"max_steps": 6, "checkpoint_every": 2}, "objective": {"epochs": 2}}
    whole: list[Mapping[str, Any]] = []
    there = train("whole", tiny_decoder, whole.append, **settings)

    def stop(record: Mapping[str, Any]) -> None:
        if record["step"] == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train("broken", tiny_decoder, stop, **settings)
    rest: list[Mapping[str, Any]] = []
    done = train("broken", tiny_decoder, rest.append, **settings)
    assert [r["step"] for r in rest] == [5, 6]
    assert [r["reward"] for r in rest] == [r["reward"] for r in whole[4:]] and [r["loss"] for r in rest] == [
        r["loss"] for r in whole[4:]
    ]
    assert tensors(done).keys() == tensors(there).keys()
    assert all(torch.equal(a, tensors(there)[k]) for k, a in tensors(done).items())


def tensors(result: TuneResult) -> dict[str, Tensor]:
    from luthier.models.load import load_model
    from luthier.store.database import open_store

    return dict(load_model(open_store(), result.model.name, dtype="fp32", device="cpu").module.state_dict())


def test_validation_keeps_the_weights_of_the_highest_reward(tiny_decoder: str) -> None:
    result = tune(
        {
            "model": tiny_decoder,
            "method": "lora",
            "objective": {"name": "grpo", "rewards": [SHORT], "group_size": 2, "max_new_tokens": 4, "beta": 0.0},
            "train": {"max_steps": 2, "batch_size": 2, "dtype": "fp32", "device": "cpu"},
        },
        splits=Splits(questions(), questions(ASKED[:2]), NONE),
    )
    assert -1 <= result.summary["validation_reward"] <= 0 and "validation_loss" in result.summary


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({}, InputError, "objective grpo: rewards is required"),
        ({"rewards": []}, InputError, "at least one scorer or reward model"),
        ({"rewards": ["exakt"]}, NotFoundError, "Did you mean 'exact'"),
        ({"rewards": ["exact"], "group_size": 1}, InputError, "group_size"),
        ({"rewards": ["exact"], "loss": "gspo"}, InputError, "loss"),
        ({"rewards": ["exact"], "epsilon": 1.5}, InputError, "epsilon"),
        ({"rewards": [{"model": "nobody"}]}, NotFoundError, "nobody"),
        ({"rewards": [{"model": "tiny-decoder"}]}, UnsupportedError, "is no reward model"),
        ({"rewards": ["number"]}, DataError, r"q\.jsonl:1: number: the target has no number"),
        ({"rewards": ["exact"], "max_new_tokens": 600}, DataError, "longer than the model's context"),
    ],
)
def test_bad_input(tiny_decoder: str, options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        tune(
            {"model": tiny_decoder, "method": "full", "objective": {"name": "grpo", **options}},
            splits=Splits(questions(), NONE, NONE),
        )


def test_an_encoder_is_refused(tiny_encoder: str) -> None:
    with pytest.raises(UnsupportedError, match="decoder"):
        tune(
            {"model": tiny_encoder, "method": "full", "objective": {"name": "grpo", "rewards": ["exact"]}},
            splits=Splits(questions(), NONE, NONE),
        )
    assert grpo.ARCHITECTURES == ("decoder",)
