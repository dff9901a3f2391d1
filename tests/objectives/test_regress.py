"""regress against transformers' own regression and separate forwards; scale, correlations, what is saved, served and evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, spearmanr
from tests.objectives.preferences import close, gradients, loaded

from luthier.core.dataset import Dataset, Example
from luthier.core.engine import Sampling
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.core.message import user
from luthier.core.task import PromptTemplate
from luthier.engines._open import open_engine
from luthier.evaluation.evaluate import evaluate
from luthier.gateway.serve import running
from luthier.models.heads import NumberHead, answers_of, number_text
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import require_mergeable
from luthier.models.reward import is_reward_model
from luthier.objectives._rows import Limits
from luthier.objectives.regress import Config, collate, figures, heads_for, loss, prepare
from luthier.store.database import open_store
from luthier.strategies._load import load
from luthier.training.tune import tune

ROWS = [
    ("The parcel has not arrived.", 4.5),
    ("Please refund the deposit for the violin.", 2.0),
    ("ok", -1.25),
    ("我的包裹还没有到,请帮我查一下。", 3.0),
    ("My lesson was cancelled twice. Who is the teacher now?", 12.0),
]
PROMPT = PromptTemplate("How urgent is it?", "Message: {input}")


def urgency(rows: list[tuple[str, float]] = ROWS) -> Dataset:
    made = (Example(str(n), user(t), str(y), source=f"u.jsonl:{n}", score=y) for n, (t, y) in enumerate(rows, 1))
    return Dataset("urgency", "number", tuple(made))


def with_head(name: str) -> LoadedModel:
    model = loaded(name)
    torch.manual_seed(1)
    heads_for(model, urgency(), Config())
    torch.nn.init.normal_(model.head.weight, std=0.2)
    return model


def standardised() -> torch.Tensor:
    values = np.array([y for _, y in ROWS])
    return torch.tensor((values - values.mean()) / values.std(), dtype=torch.float32)


def reference(name: str, said: torch.Tensor) -> torch.Tensor:
    wanted, gap = standardised(), said - standardised()
    if name == "huber":
        return torch.where(gap.abs() <= 0.7, gap**2 / 2, 0.7 * (gap.abs() - 0.35)).mean()
    return {"mse": F.mse_loss, "mae": F.l1_loss}[name](said, wanted)


@pytest.mark.parametrize("name", ["mse", "mae", "huber"])
@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_equals_separate_forwards(name: str, architecture: str, request: pytest.FixtureRequest) -> None:
    model = with_head(request.getfixturevalue(f"tiny_{architecture}"))
    said = []
    for text, _ in ROWS:
        if architecture == "encoder":
            ids = torch.tensor([model.tokenizer(text)["input_ids"]])
            vector = model.module.pooled(ids, torch.ones_like(ids))[0]
        else:
            assert model.renderer is not None
            ids = torch.tensor([model.renderer.prompt_ids(PROMPT.messages(text))])
            vector = model.module.get_decoder()(input_ids=ids).last_hidden_state[0, -1]
        said.append(vector @ model.head.weight[0] + model.head.bias[0])
    expected = reference(name, torch.stack(said))
    expected.backward()
    wanted = gradients(model.module)
    config = Config(loss=name, **({"delta": 0.7} if name == "huber" else {}))  # type: ignore[arg-type]
    rows = prepare(urgency(), model, PROMPT, config, Limits(512))
    found = loss(model, collate(rows, model), config)
    found.value.backward()
    assert found.count == len(ROWS)
    assert abs(float(found.value.detach()) - float(expected.detach())) < 1e-6
    close(gradients(model.module), wanted)
    mean, deviation = np.mean([y for _, y in ROWS]), np.std([y for _, y in ROWS])
    numbers = torch.stack(said).detach().numpy() * deviation + mean
    assert found.metrics["mae"] == pytest.approx(np.abs(numbers - [y for _, y in ROWS]).mean(), rel=1e-5)


def test_equals_transformers(tiny_decoder: str, tiny_decoder_path: Path) -> None:
    """LlamaForSequenceClassification reads the last token too; with one label its loss is the mean squared error."""
    from transformers import AutoModelForSequenceClassification

    model = with_head(tiny_decoder)
    torch.nn.init.zeros_(model.head.bias)  # theirs has none
    rows = prepare(urgency(), model, PROMPT, Config(), Limits(512))
    theirs = AutoModelForSequenceClassification.from_pretrained(str(tiny_decoder_path), num_labels=1, dtype="float32")
    theirs.config.problem_type = "regression"
    with torch.no_grad():
        theirs.score.weight.copy_(model.head.weight)
    theirs.eval()
    each = [
        theirs(input_ids=torch.tensor([row.prompt]), labels=standardised()[i : i + 1]).loss
        for i, row in enumerate(rows)
    ]
    found = loss(model, collate(rows, model), Config())
    assert abs(float(found.value.detach()) - float(torch.stack(each).mean().detach())) < 1e-6


def test_correlations_are_scipys() -> None:
    draw = np.random.default_rng(0)
    said, wanted = draw.normal(size=40).round(1), draw.normal(size=40).round(1)  # with ties
    found = figures(list(zip(said.tolist(), wanted.tolist(), strict=True)), Config())
    assert found["pearson"] == pytest.approx(pearsonr(said, wanted).statistic)
    assert found["spearman"] == pytest.approx(spearmanr(said, wanted).statistic)
    assert figures([(1.0, 2.0), (1.0, 3.0)], Config()) == {"pearson": 0.0, "spearman": 0.0}


def test_bad_input(tiny_decoder: str, tiny_encoder: str, tiny_t5: str) -> None:
    encoder = with_head(tiny_encoder)
    with pytest.raises(InputError, match="delta is of loss huber"):
        Config_of(loss="mse", delta=2.0)
    with pytest.raises(DataError, match=r"every target of urgency is 2"):
        heads_for(loaded(tiny_encoder), urgency([("a", 2.0), ("b", 2.0)]), Config())
    with pytest.raises(UnsupportedError, match="needs data of kind number"):
        heads_for(encoder, Dataset("x", "text", ()), Config())
    with pytest.raises(UnsupportedError, match="objective: sft"):
        heads_for(loaded(tiny_t5), urgency(), Config())
    long = urgency([("word " * 300, 1.0), ("ok", 2.0)])
    with pytest.raises(DataError, match=r"u.jsonl:1: \d+ tokens"):
        prepare(long, encoder, PROMPT, Config(), Limits(128))
    with pytest.raises(DataError, match=r"u.jsonl:1: \d+ tokens"):
        prepare(long, with_head(tiny_decoder), PROMPT, Config(), Limits(128))
    cut = prepare(long, with_head(tiny_decoder), PROMPT, Config(), Limits(128, "truncate"))
    assert [row.length <= 128 for row in cut] == [True, True]


def Config_of(**options: object) -> object:
    from luthier.core import catalog

    return catalog.load("objectives", "regress").configure(options)


def test_a_number_head_is_no_reward_model(tiny_encoder: str) -> None:
    model = with_head(tiny_encoder)
    assert isinstance(model.head, NumberHead) and answers_of(model.head) == "number"
    assert not is_reward_model(model)


@pytest.mark.parametrize(("value", "text"), [(3.0, "3"), (-1.25, "-1.25"), (1e-7, "0.0000001"), (1234567.0, "1234570")])
def test_numbers_as_text(value: float, text: str) -> None:
    assert number_text(value) == text


def _file(tmp_path: Path) -> Path:
    path = tmp_path / "urgency.jsonl"
    rows = [{"text": f"{'My lesson was cancelled. ' * (n % 3)}Ticket {n}", "target": 10.0 * (n % 3)} for n in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("architecture", "method"),
    [("encoder", "linear_probe"), ("encoder", "lora"), ("encoder", "full"), ("decoder", "lora"), ("decoder", "full")],
)
def test_tuned_served_and_evaluated(
    architecture: str, method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = request.getfixturevalue(f"tiny_{architecture}")
    path = _file(tmp_path)
    run = {
        "name": "urgency",
        "model": name,
        "method": method,
        "data": {"path": str(path)},
        "train": {"epochs": 4, "learning_rate": 1e-2, "dtype": "fp32", "batch_size": 4},
        **({"prompt": {"instruction": "How urgent?"}} if architecture == "decoder" else {}),
    }
    result = tune(run)
    assert result.model.meta["objective"] == "regress" and result.model.meta["answers"] == "number"
    assert "scores" not in result.model.meta
    assert {"validation_mae", "validation_pearson", "validation_spearman"} <= result.summary.keys()
    if architecture == "decoder":
        with pytest.raises(UnsupportedError, match="answers with a head"):
            require_mergeable(result.model)
    model = load_model(open_store(), "urgency", dtype="fp32")
    assert float(model.head.mean) == pytest.approx(10.0, abs=2.0) and float(model.head.deviation) > 5
    engine = load("urgency", options={"dtype": "fp32"})
    assert engine.info.answers == "number"
    texts = [
        "Ticket 3",
        "My lesson was cancelled. Ticket 4",
        "My lesson was cancelled. My lesson was cancelled. Ticket 5",
    ]
    answers = engine.generate([user(text) for text in texts], Sampling(temperature=1.0))
    numbers = [float(answer.text) for answer in answers]
    assert numbers == sorted(numbers) and -5 < numbers[0] < numbers[2] < 25
    pieces = list(engine.stream(user(texts[0]), Sampling()))
    assert pieces[0].text == answers[0].text
    task = {"name": "urgency", "data": {"path": str(path)}}
    found = evaluate(engine, _task(task, tmp_path))
    assert found.primary == "mae" and {"mae", "rmse", "pearson", "spearman"} == set(found.scores)
    assert found.scores["mae"]["value"] <= found.scores["rmse"]["value"] < 10
    with running({"urgency": engine}) as url:
        body = {"model": "urgency", "messages": [{"role": "user", "content": texts[2]}]}
        said = httpx.post(f"{url}/chat/completions", json=body).json()
    assert said["choices"][0]["message"]["content"] == answers[2].text


def _task(values: dict[str, object], folder: Path) -> Path:
    import yaml

    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_the_scale_stays_when_tuning_goes_on(tiny_encoder: str, tmp_path: Path) -> None:
    path = _file(tmp_path)
    base = {"method": "linear_probe", "data": {"path": str(path)}, "train": {"max_steps": 2, "dtype": "fp32"}}
    tune({**base, "name": "first", "model": tiny_encoder})
    tune(
        {**base, "name": "second", "model": "first", "train": {"max_steps": 1, "learning_rate": 1e-12, "dtype": "fp32"}}
    )
    one, two = (open_engine(open_store(), name, options={"dtype": "fp32"}) for name in ("first", "second"))
    prompts = [user("Ticket 1"), user("My lesson")]
    assert [g.text for g in one.generate(prompts, Sampling())] == [g.text for g in two.generate(prompts, Sampling())]
