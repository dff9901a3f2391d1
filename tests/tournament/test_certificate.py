"""Certificates: the test, its small-sample guard, what is kept, and what promotion makes of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.errors import InputError, MismatchError, UnsupportedError
from luthier.core.message import user
from luthier.core.model import ModelRecord
from luthier.core.run import Run
from luthier.core.task import PromptTemplate, Task
from luthier.evaluation.loop import scorers_of
from luthier.evaluation.records import Record
from luthier.evaluation.result import EvalResult, statistic_of
from luthier.tournament.certificate import FILE, Certificate, certify, judge, standing_of

LABELS = ("a", "b")


def task_of(count: int, scorer: str = "accuracy") -> Task:
    empty = Dataset("x", "labelled", ())
    rows = Dataset("x", "labelled", tuple(Example(str(i), user(str(i)), LABELS[i % 2]) for i in range(count)))
    return Task("t", "classify", Splits(empty, empty, rows), PromptTemplate(labels=LABELS), ((scorer, {}),))


def result(task: Task, right: Sequence[bool], model: str) -> EvalResult:
    records = []
    for i, (example, good) in enumerate(zip(task.examples("test"), right, strict=True)):
        target = str(example.target)
        answer = target if good else LABELS[1 - LABELS.index(target)]
        records.append(Record(i, str(i), "s", "x", target, answer, scores={task.scorers[0][0]: float(good)}))
    run = Run(f"run_{model}", "eval", "done")
    value = statistic_of(scorers_of(task)[0], records).value
    return EvalResult(
        run=run,
        model=model,
        task="t",
        split="test",
        strategy="own",
        primary=task.scorers[0][0],
        scores={task.scorers[0][0]: {"value": value}},
        records=tuple(records),
    )


def verdict(count: int, worse: int, better: int = 0, margin: float = 0.02, scorer: str = "accuracy") -> Certificate:
    """Of ``count`` examples, ``worse`` right answers are lost and ``better`` wrong ones mended; three quarters were right."""
    task = task_of(count, scorer)
    before = np.arange(count) % 4 != 0
    made = before.copy()
    made[np.flatnonzero(before)[:worse]] = False
    made[np.flatnonzero(~before)[:better]] = True
    return judge(
        task, result(task, made.tolist(), "export"), result(task, before.tolist(), "model"),
        margin=margin, export="export", original="model",
    )  # fmt: skip


def test_equal_answers_pass_only_when_there_are_enough_of_them() -> None:
    assert verdict(400, 0).verdict == "PASS"
    few = verdict(40, 0)
    assert few.verdict == "inconclusive", "forty equal answers do not show two percent"
    assert (few.difference, few.changed) == (0.0, 0)
    assert few.needed is not None
    assert few.needed > 40
    assert "would tell" in few.sentence


def test_clear_losses_fail_and_small_ones_are_open() -> None:
    lost = verdict(400, 60)
    assert (lost.verdict, lost.changed, lost.needed) == ("FAIL", 60, None)
    assert lost.high <= -0.02
    assert lost.low < lost.difference < lost.high
    assert verdict(400, 8).verdict == "inconclusive"
    assert verdict(400, 8, margin=0.1).verdict == "PASS"
    assert verdict(400, 0, 20).verdict == "PASS", "better is not worse"


@pytest.mark.parametrize("scorer", ["accuracy", "macro_f1"])
def test_the_bound_is_one_sided_95_percent(scorer: str) -> None:
    """Against the normal bound of paired differences, where it is good."""
    found = verdict(2000, 100, 90, scorer=scorer)
    differences = np.array([-1.0] * 100 + [1.0] * 90 + [0.0] * 1810)
    reach = 1.645 * differences.std() / np.sqrt(2000)
    assert found.difference - found.low == pytest.approx(reach, rel=0.12)
    assert found.high - found.difference == pytest.approx(reach, rel=0.12)


def test_a_worse_export_seldom_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a true loss of exactly the margin, at most 5% may pass (simulated; 8% allows for 200 draws)."""
    monkeypatch.setattr("luthier.tournament.certificate.TEST_RESAMPLES", 1000)
    draw = np.random.default_rng(0)
    passed = 0
    for _ in range(200):
        kinds = draw.choice(3, size=300, p=[0.06, 0.02, 0.92])  # worse, better, same: 4% worse
        passed += verdict(300, int((kinds == 0).sum()), min(int((kinds == 1).sum()), 75), margin=0.04).verdict == "PASS"
    assert passed / 200 <= 0.08


def test_the_number_needed_is_enough() -> None:
    """With as many examples and as many changes each way, an equal export passes."""
    open_ = verdict(200, 6, 6)
    assert open_.verdict == "inconclusive"
    assert open_.needed is not None
    share = open_.needed / 200
    assert verdict(open_.needed, round(6 * share), round(6 * share)).verdict == "PASS"


@pytest.fixture
def export(tmp_path: Path, home: Path, tiny_decoder: str) -> tuple[str, Path]:
    """An F16 export of the tiny decoder, and a task file."""
    from luthier.models.export import export as write

    rows = [{"text": f"row {i}", "label": LABELS[i % 2]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "task.yaml"
    path.write_text(
        "name: sorting\ndata: {path: rows.jsonl, split: {train: 0.2, validation: 0.2, test: 0.6}}\nscorers: accuracy\n"
    )
    return write(tiny_decoder, type="F16").name, path


def test_an_export_is_certified_kept_and_promoted(export: tuple[str, Path], tiny_decoder: str) -> None:
    from luthier.store.database import open_store
    from luthier.store.lineage import lineage
    from luthier.store.models import find, register
    from luthier.store.runs import folder
    from luthier.tasks._load import load_task
    from luthier.tournament.promote import promote

    name, path = export
    store = open_store()
    found = certify(name, path, margin=0.5, store=store)
    assert found.verdict == "PASS"
    assert (found.export, found.original, found.examples) == (name, tiny_decoder, 24)
    record = find(store, name)
    task = load_task(path)
    assert record.meta["certificates"][task.digest] == json.loads(json.dumps(found.as_dict()))
    assert found.digests == {
        "export": record.digest,
        "original": find(store, tiny_decoder).digest,
        "task": task.digest,
    }
    assert json.loads((folder(store, found.runs["export"]) / FILE).read_text())["verdict"] == "PASS"
    edges = {(e["source"]["id"], e["relation"]) for e in lineage(name, store).as_dict()["edges"]}
    assert {(run, "certified") for run in found.runs.values()} <= edges
    endpoint = promote(found.runs["export"], name="served", parity_check=False, store=store)
    assert endpoint.meta["certificate"]["verdict"] == "PASS"
    failed = {task.digest: found.as_dict() | {"verdict": "FAIL"}}
    register(store, replace(record, meta={**record.meta, "certificates": failed}))
    with pytest.raises(MismatchError, match=r"failed its certificate(.|\n)*--uncertified"):
        promote(found.runs["export"], name="other", parity_check=False, store=store)
    insisted = promote(found.runs["export"], name="other", parity_check=False, uncertified=True, store=store)
    assert insisted.meta["certificate"]["verdict"] == "FAIL"


def test_what_cannot_be_certified(tiny_decoder: str, export: tuple[str, Path]) -> None:
    from luthier.store.database import open_store
    from luthier.store.models import find, register

    name, path = export
    store = open_store()
    with pytest.raises(UnsupportedError, match="a certificate is for exports"):
        certify(tiny_decoder, path, store=store)
    with pytest.raises(InputError, match="margin must be above 0 and below 1"):
        certify(name, path, margin=0.0, store=store)
    record = find(store, name)
    register(store, replace(record, meta={**record.meta, "target_digest": "0" * 64}))
    with pytest.raises(MismatchError, match="has changed since"):
        certify(name, path, store=store)


def test_an_endpoint_says_when_there_is_none() -> None:
    record = ModelRecord("e", "export", "decoder", "0" * 64, meta={})
    told: dict[str, Any] = standing_of(record, {"name": "sorting", "digest": "1"})
    assert told == {"verdict": "none", "task": "sorting"}
