"""reward against Bradley-Terry from separate forwards, and against TRL on the same tokens; what is saved and loaded back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.objectives.preferences import PAIRS, close, example, gradients, loaded, pairs

from luthier.core.dataset import Dataset
from luthier.core.errors import DataError, InputError, MismatchError, UnsupportedError
from luthier.core.message import Message, user
from luthier.core.task import PromptTemplate
from luthier.models.attach import attach, select
from luthier.models.load import LoadedModel, load_model
from luthier.models.reward import rewards
from luthier.models.weights import read_tensors, write_tensors
from luthier.objectives._rows import Limits
from luthier.objectives.reward import Config, RankedRow, collate, heads, loss, prepare
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.training.tune import tune


def rows_of(
    model: LoadedModel, data: Dataset | None = None, config: Config | None = None, limits: Limits | None = None
) -> list[RankedRow]:
    data = pairs() if data is None else data
    return prepare(data, model, PromptTemplate(), config or Config(), limits or Limits(512))


def with_head(name: str) -> LoadedModel:
    model = loaded(name)
    torch.manual_seed(1)
    heads(model, Config())
    return model


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return with_head(tiny_decoder)


@pytest.fixture
def encoder(tiny_encoder: str) -> LoadedModel:
    return with_head(tiny_encoder)


def reward(model: LoadedModel, ids: list[int]) -> torch.Tensor:
    """From one plain forward: the head on the last token's hidden state."""
    hidden = model.module.get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state
    return (hidden[0, -1] * model.head.weight[0]).sum()


def test_which_tokens_are_read(model: LoadedModel) -> None:
    """The whole conversation is read; the reward is that of the end of the answer's turn."""
    (row,) = rows_of(model, pairs(PAIRS[1:2]))
    text = model.tokenizer.decode
    assert text(row.prompt).endswith("Refund?<|im_end|>\n<|im_start|>assistant\n")
    assert [text(answer) for answer in row.answers] == ["Yes, today.<|im_end|>", "Ask.<|im_end|>"]
    assert row.better == [(0, 1, 0.0)]
    seen = []
    model.module.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    loss(model, collate([row], model), Config())
    assert seen == [row.length] == [len(row.prompt) + sum(map(len, row.answers))]


@pytest.mark.parametrize("center", [0.0, 0.05])
def test_equals_bradley_terry_from_separate_forwards(model: LoadedModel, center: float) -> None:
    config = Config(center=center, margin="by")
    data = Dataset("pairs", "preference", tuple(example(n, *row, by=0.3 * n) for n, row in enumerate(PAIRS)))
    rows = rows_of(model, data, config)
    values = []
    for number, row in enumerate(rows):
        good, bad = (reward(model, row.prompt + answer) for answer in row.answers)
        values.append(-torch.sigmoid(good - bad - 0.3 * number).log() + center * (good + bad) ** 2)
    expected = torch.stack(values).mean()
    expected.backward()
    wanted = gradients(model.module)
    assert "task_head.weight" in wanted
    found = loss(model, collate(rows, model), config)
    found.value.backward()
    assert found.count == len(PAIRS)
    assert abs(float(found.value.detach()) - float(expected.detach())) < 1e-6
    close(gradients(model.module), wanted)


def test_equals_trl(model: LoadedModel, tiny_decoder_path: Path, tmp_path: Path) -> None:
    import datasets
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    rows = rows_of(model)
    ours = loss(model, collate(rows, model), Config(center=0.1))
    ours.value.backward()
    mine = gradients(model.module)
    theirs = AutoModelForSequenceClassification.from_pretrained(str(tiny_decoder_path), num_labels=1, dtype="float32")
    theirs.config.pad_token_id = model.tokenizer.pad_token_id
    with torch.no_grad():
        theirs.score.weight.copy_(model.head.weight)
    row = {"chosen": "a b", "rejected": "a c"}
    trainer = RewardTrainer(
        theirs,
        args=RewardConfig(
            output_dir=str(tmp_path), bf16=False, report_to=[], use_cpu=True, center_rewards_coefficient=0.1
        ),
        train_dataset=datasets.Dataset.from_list([row, row]),
        processing_class=model.tokenizer,
    )
    theirs.eval()
    whole = [r.prompt + r.answers[0] for r in rows] + [r.prompt + r.answers[1] for r in rows]
    width = max(map(len, whole))
    fill = model.tokenizer.pad_token_id
    value = trainer.compute_loss(
        theirs,
        {
            "input_ids": torch.tensor([ids + [fill] * (width - len(ids)) for ids in whole]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in whole]),
        },
    )
    value.backward()
    assert abs(float(ours.value.detach()) - float(value.detach())) < 1e-6
    told = gradients(theirs)
    names = {"score.weight": "task_head.weight"}
    close(mine, {names.get(name, name): gradient for name, gradient in told.items()})
    known = {key: values[-1] for key, values in trainer._metrics["eval"].items()}
    assert ours.metrics["accuracy"] == known["accuracy"]
    assert math.isclose(ours.metrics["margin"], known["margin"], abs_tol=1e-5)
    assert math.isclose(ours.metrics["reward"], known["mean_reward"], abs_tol=1e-5)


@pytest.mark.parametrize("kind", ["model", "encoder"])
def test_ranked_answers_of_a_prompt_are_read_once(kind: str, request: pytest.FixtureRequest) -> None:
    """Four answers in order are six comparisons and four answers in one row; the loss is that of the six pairs."""
    model: LoadedModel = request.getfixturevalue(kind)
    ranked = [
        "Please refund the deposit.",
        "The parcel has not arrived.",
        "My violin was in it.",
        "The courier does not answer.",
    ]
    made = [("Refund?", a, b) for i, a in enumerate(ranked) for b in ranked[i + 1 :]]
    rows = rows_of(model, pairs([*made, PAIRS[0]]))
    assert [(len(row.answers) + len(row.pairs), row.weight) for row in rows] == [(4, 6), (2, 1)]
    with torch.no_grad():
        together = loss(model, collate(rows, model), Config())
        alone = [
            float(loss(model, collate(rows_of(model, pairs([one])), model), Config()).value)
            for one in [*made, PAIRS[0]]
        ]
    assert together.count == 7
    assert float(together.value) == pytest.approx(sum(alone) / 7, abs=1e-6)


def test_encoder_reads_prompt_and_answer_as_a_pair(encoder: LoadedModel) -> None:
    rows = rows_of(encoder)
    values = []
    for row, (asked, *answers) in zip(rows, PAIRS, strict=True):
        both = []
        for pair, answer in zip(row.pairs, answers, strict=True):
            plain = encoder.tokenizer(asked, answer, return_tensors="pt")
            assert plain["input_ids"][0].tolist() == pair.ids
            hidden = encoder.module.body(
                input_ids=plain["input_ids"], token_type_ids=torch.tensor([pair.types])
            ).last_hidden_state
            both.append((hidden[0].mean(0) * encoder.head.weight[0]).sum())
        values.append(-F.logsigmoid(both[0] - both[1]))
    expected = torch.stack(values).mean()
    found = loss(encoder, collate(rows, encoder), Config())
    assert abs(float(found.value.detach()) - float(expected.detach())) < 1e-6


def test_bad_input(model: LoadedModel, encoder: LoadedModel, tiny_t5: str) -> None:
    for one in (model, encoder):
        with pytest.raises(DataError, match=r"one is missing \(pairs\.jsonl:1\)"):
            rows_of(one, pairs([("a", "b", None)]))
        with pytest.raises(DataError, match=r"same tokens \(pairs\.jsonl:2\)"):
            rows_of(one, pairs([PAIRS[0], ("a", "b", "b")]))
        with pytest.raises(DataError, match=r"an answer is empty \(pairs\.jsonl:1\)"):
            rows_of(one, pairs([("a", "", "b")]))
        with pytest.raises(DataError, match=r"margin=by.*\(pairs\.jsonl:1, pairs\.jsonl:2,"):
            rows_of(one, config=Config(margin="by"))
        with pytest.raises(UnsupportedError, match="kind preference; talk is chat"):
            rows_of(one, Dataset("talk", "chat", ()))
    with pytest.raises(UnsupportedError, match="needs a decoder or an encoder"):
        heads(loaded(tiny_t5), Config())


@pytest.mark.parametrize("kind", ["model", "encoder"])
def test_rows_over_the_context(kind: str, request: pytest.FixtureRequest) -> None:
    model: LoadedModel = request.getfixturevalue(kind)
    whole = rows_of(model)
    sizes = [max([len(r.prompt) + len(a) for a in r.answers] + [len(p.ids) for p in r.pairs]) for r in whole]
    most = max(sizes) - 2
    with pytest.raises(DataError, match=f"context of {most} tokens"):
        rows_of(model, limits=Limits(most))
    dropping, cutting = Limits(most, "drop"), Limits(most, "truncate")
    assert len(rows_of(model, limits=dropping)) == len(whole) - len(dropping.dropped) < len(whole)
    cut = rows_of(model, limits=cutting)
    assert len(cut) == len(whole) and cutting.truncated == dropping.dropped
    for row in cut:
        assert all(len(row.prompt) + len(answer) <= most for answer in row.answers)
        assert all(len(pair.ids) <= most for pair in row.pairs)


WANTED = [
    ("My violin", "Please refund the deposit.", "The courier does not answer."),
    ("The parcel", "Please refund it.", "The courier does not answer."),
    ("the deposit", "Please refund the violin.", "The parcel has not arrived."),
]


def told(number: int) -> tuple[tuple[Message, ...], ...]:
    asked, good, bad = WANTED[number]
    return tuple((*user(asked), Message("assistant", said)) for said in (good, bad))


def run(base: str, method: str, folder: Path, **more: object) -> object:
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in WANTED))
    config = {
        "model": base,
        "data": {"train": str(data), "validation": str(data)},
        "method": method,
        "objective": "reward",
        "train": {"epochs": 20, "batch_size": 3, "dtype": "fp32", "device": "cpu", "learning_rate": 1e-2},
        **more,
    }
    return tune(config)


@pytest.mark.parametrize(
    ("base", "method"),
    [
        ("tiny_decoder", "lora"),
        ("tiny_decoder", "full"),
        ("tiny_decoder", "freeze"),
        ("tiny_encoder", "lora"),
        ("tiny_encoder", "linear_probe"),
    ],
)
def test_tuned_saved_loaded_and_attached(
    base: str, method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name, store = request.getfixturevalue(base), open_store()
    result = run(name, method, tmp_path)
    assert result.summary["validation_accuracy"] == 1.0  # type: ignore[attr-defined]
    folder = path_of(store, result.model.digest)  # type: ignore[attr-defined]
    head = read_tensors(folder / "head.safetensors")
    assert set(head) == {"weight"}
    for path in folder.glob("*.safetensors"):
        assert path.name == "head.safetensors" or not any("task_head" in key for key in read_tensors(path))
    again = load_model(store, result.model.name, dtype="fp32", device="cpu")  # type: ignore[attr-defined]
    assert torch.equal(again.head.weight, head["weight"])
    found = rewards(again, [turns for n in range(3) for turns in told(n)])
    assert all(good > bad for good, bad in zip(found[::2], found[1::2], strict=True))
    if result.model.meta["saves"] == "weights":  # type: ignore[attr-defined]
        return
    shared = load_model(store, name, dtype="fp32", device="cpu")
    attach(shared, result.model, "scores")  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedError, match="no reward model"):
        rewards(shared, [told(0)[0]])
    select(shared, "scores")
    assert rewards(shared, [told(0)[0]]) == pytest.approx(found[:1], abs=1e-5)
    select(shared, None)
    assert shared.head is None


def test_tuning_goes_on_with_the_head_and_other_objectives_leave_it(tiny_decoder: str, tmp_path: Path) -> None:
    store = open_store()
    first = run(tiny_decoder, "lora", tmp_path, name="first")
    begun = read_tensors(path_of(store, first.model.digest) / "head.safetensors")["weight"]  # type: ignore[attr-defined]
    slow = {"epochs": 1, "batch_size": 3, "dtype": "fp32", "device": "cpu", "learning_rate": 1e-6}
    second = run("first", "lora", tmp_path, name="second", train=slow)
    went_on = read_tensors(path_of(store, second.model.digest) / "head.safetensors")["weight"]  # type: ignore[attr-defined]
    torch.testing.assert_close(went_on, begun, rtol=0, atol=1e-4)
    third = run("first", "lora", tmp_path, name="third", objective="dpo", train=slow)
    assert not (path_of(store, third.model.digest) / "head.safetensors").exists()  # type: ignore[attr-defined]
    assert load_model(store, "third", device="cpu").head is None


def test_a_head_that_does_not_fit(tiny_decoder: str, tmp_path: Path) -> None:
    store = open_store()
    result = run(tiny_decoder, "lora", tmp_path)
    folder = path_of(store, result.model.digest)  # type: ignore[attr-defined]
    path = folder / "head.safetensors"
    folder.chmod(0o755)
    path.unlink()
    write_tensors(path, {"weight": torch.zeros(4, 8)})
    with pytest.raises(MismatchError, match=r"shape \(4, 8\) does not fit"):
        load_model(store, result.model.name, device="cpu")  # type: ignore[attr-defined]


def test_rewards_refuse_what_they_cannot_score(model: LoadedModel) -> None:
    with pytest.raises(InputError, match="conversation 2 must be a prompt and an assistant turn"):
        rewards(model, [told(0)[0], user("x")])
    model.context_length = 10
    with pytest.raises(InputError, match="reads at most 10"):
        rewards(model, [told(0)[0]])


def test_merging_would_lose_the_head(tiny_decoder: str, tmp_path: Path) -> None:
    from luthier.models.combine import merge_into_base

    run(tiny_decoder, "lora", tmp_path, name="scored")
    with pytest.raises(UnsupportedError, match="merged weights would lose it"):
        merge_into_base(open_store(), "scored")
