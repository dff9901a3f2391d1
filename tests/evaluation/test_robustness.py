from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.engine import ContinuationScore
from luthier.core.errors import InputError
from luthier.core.message import last_user_text, user
from luthier.core.run import no_progress
from luthier.core.task import PromptTemplate, Task
from luthier.engines.fake import Config, FakeEngine
from luthier.evaluation.perturb import CHANGES
from luthier.evaluation.robustness import REPORT_JSON, REPORT_PNG, draw, robustness, variants_of
from luthier.store.database import Store, open_store
from luthier.store.runs import folder, list_runs
from luthier.tasks.own import read_task

LABELS = ("billing", "refund")


@pytest.fixture
def store(home: Path) -> Store:
    return open_store()


@pytest.fixture
def task(tmp_path: Path) -> Task:
    rows = [
        {"text": f"Please ask about my {LABELS[i % 2]}, I need help now. Number {i}.", "label": LABELS[i % 2]}
        for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "task.yaml"
    path.write_text("name: sorting\ndata: {path: rows.jsonl}\nscorers: [accuracy]\n")
    return read_task(path)


class CaseBlind(FakeEngine):
    """Knows a label only in lower case, so that UPPER CASE questions are beyond it."""

    def __init__(self) -> None:
        super().__init__("case", Config())
        self.asked = 0

    def score(self, requests, progress=no_progress):  # type: ignore[no-untyped-def]
        self.asked += len(requests)
        out = []
        for request in requests:
            text = last_user_text(request.prompt)
            out.append(tuple(ContinuationScore(0.0 if c in text else -1.0, 1) for c in request.continuations))
        return out


def test_the_variant_that_hurts_is_found_with_its_flips(store: Store, task: Task) -> None:
    report = robustness(CaseBlind(), task, prompts=[], store=store)
    by_name = {v.name: v for v in report.variants}
    assert report.variants[0].name == "original" and report.variants[0].value == 1.0
    assert list(by_name)[1:] == list(CHANGES), "no option order without options"
    upper = by_name["upper_case"]
    assert report.worst == "upper_case" and report.lowest == upper.value
    assert upper.flips == pytest.approx(1 - upper.value) and upper.difference == pytest.approx(upper.value - 1)
    assert upper.p_adjusted < 0.05 < by_name["lower_case"].p_adjusted
    values = [v.value for v in report.variants]
    assert (report.mean, report.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert report.spread == pytest.approx(max(values) - min(values))
    assert report.stable == pytest.approx(1 - len(report.flipped) / report.examples)
    assert all("upper_case" in each.variants for each in report.flipped)
    assert all(v.low <= v.value <= v.high and v.changed for v in report.variants[1:])
    place = Path(report.folder)
    assert place == folder(store, report.variants[0].run)
    assert json.loads((place / REPORT_JSON).read_text())["worst"] == "upper_case"
    assert (place / REPORT_PNG).read_bytes().startswith(b"\x89PNG")


def test_the_same_is_not_asked_twice_and_another_seed_is_other_work(store: Store, task: Task) -> None:
    engine = CaseBlind()
    first = robustness(engine, task, variants=["typos", "synonyms"], prompts=[], store=store)
    asked, runs = engine.asked, len(list_runs(store))
    again = robustness(engine, task, variants=["typos", "synonyms"], prompts=[], store=store)
    assert (engine.asked, len(list_runs(store))) == (asked, runs)
    assert again == first
    other = robustness(engine, task, variants=["typos"], prompts=[], seed=1, store=store)
    assert other.variants[1].run not in {v.run for v in first.variants}
    assert other.variants[0].run == first.variants[0].run


def test_prompts_of_the_catalogue_are_variants_of_a_label_task(store: Store, task: Task) -> None:
    report = robustness("fake", task, variants=["lower_case"], limit=8, store=store)
    names = [v.name for v in report.variants]
    assert names[:2] == ["original", "lower_case"]
    assert len(names) >= 4 and all(n.startswith("prompt:classify") and "zh" not in n for n in names[2:])
    assert report.examples == 8
    one = robustness("fake", task, variants=["lower_case"], prompts=["classify_question"], limit=8, store=store)
    assert [v.name.partition("@")[0] for v in one.variants[2:]] == ["prompt:classify_question"]


def test_a_model_with_its_own_prompt_keeps_it(store: Store, task: Task) -> None:
    engine = CaseBlind()
    engine._info = replace(engine._info, prompt_digest="d")
    report = robustness(engine, task, variants=["lower_case"], store=store)
    assert [v.name for v in report.variants] == ["original", "lower_case"]
    with pytest.raises(InputError, match="prompts cannot be varied"):
        robustness(engine, task, variants=["lower_case"], prompts=["classify"], store=store)


def choice_task(count: int = 12) -> Task:
    letters = ("A", "B", "C")
    examples = tuple(
        Example(
            f"e{i}", user(f"Question {i}?\nA. yes {i}\nB. no {i}\nC. maybe {i}\nAnswer:"), letters[i % 3], choices=letters,
            correct=(i % 3,),
        )
        for i in range(count)
    )  # fmt: skip
    nothing = Dataset("x", "question", ())
    splits = Splits(nothing, nothing, replace(nothing, examples=examples))
    return Task("exam", "choice", splits, PromptTemplate(), (("accuracy", {}),))


def test_every_rotation_of_the_options_is_a_variant(store: Store) -> None:
    """A model that always says A is as good in every rotation, and not one of its right answers is stable."""

    class AlwaysA(CaseBlind):
        def score(self, requests, progress=no_progress):  # type: ignore[no-untyped-def]
            return [tuple(ContinuationScore(-float(i), 1) for i in range(len(r.continuations))) for r in requests]

    report = robustness(AlwaysA(), choice_task(), variants=["option_order"], store=store)
    assert [v.name for v in report.variants] == ["original", "option_order 1", "option_order 2"]
    assert [v.value for v in report.variants] == pytest.approx([1 / 3] * 3)
    assert all(v.flips == pytest.approx(2 / 3) for v in report.variants[1:])
    assert report.stable == 0.0 and report.spread == pytest.approx(0.0)


def test_what_changes_nothing_is_left_out_and_told(task: Task) -> None:
    quiet = Example("e", user("多少"), "billing")
    splits = replace(task.splits, test=replace(task.splits.test, examples=(quiet,)))
    found, notes = variants_of(replace(task, splits=splits), ["upper_case", "option_order"], [])
    assert [v.name for v in found] == ["original"]
    assert len(notes) == 2 and "upper_case changes none of the 1 questions" in notes[0]


def test_an_unknown_variant_is_named(store: Store, task: Task) -> None:
    with pytest.raises(InputError, match=r"'uppercase' is not known\. Did you mean 'upper_case'"):
        robustness("fake", task, variants=["uppercase"], store=store)


def test_an_interrupted_run_goes_on(store: Store, task: Task, tmp_path: Path) -> None:
    class Stops(CaseBlind):
        def score(self, requests, progress=no_progress):  # type: ignore[no-untyped-def]
            if self.asked > 40:
                raise KeyboardInterrupt
            return super().score(requests, progress)

    with pytest.raises(KeyboardInterrupt):
        robustness(Stops(), task, prompts=[], store=store)
    done = [r for r in list_runs(store) if r.status == "done"]
    assert done
    engine = CaseBlind()
    report = robustness(engine, task, prompts=[], store=store)
    assert {r.id for r in done} <= {v.run for v in report.variants}
    draw(report, tmp_path / "again.png")
    assert (tmp_path / "again.png").exists()
