from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from luthier.core.engine import GENERATE
from luthier.core.errors import InputError, MismatchError
from luthier.engines.fake import Config, FakeEngine
from luthier.evaluation.compare import changed, compare
from luthier.evaluation.evaluate import evaluate
from luthier.store.database import open_store
from luthier.store.runs import start


class Says(FakeEngine):
    """Writes the answers it was given, by the beginning of the text."""

    def __init__(self, name: str, answers: dict[str, str]) -> None:
        super().__init__(name, Config(answers=answers))
        self._info = self._info.with_(capabilities=frozenset({GENERATE}), model_digest="")


RIGHT = {f"q{i:02d} ": str(i) for i in range(30)}
POOR = {key: ("no" if i % 3 == 0 else answer) for i, (key, answer) in enumerate(RIGHT.items())}  # 10 of 30 wrong
MIXED = {key: ("no" if i in (1, 2) else answer) for i, (key, answer) in enumerate(RIGHT.items())}  # 2 others wrong


@pytest.fixture
def task(home: Path, tmp_path: Path) -> str:
    rows = [{"question": f"q{i:02d} is what?", "answer": str(i)} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "task.yaml"
    path.write_text("data: {test: rows.jsonl}\nscorers: [exact, {name: edit_distance, as: near}]\n")
    return str(path)


def test_difference_tests_and_changed_examples(task: str) -> None:
    one, other = evaluate(Says("mixed", MIXED), task), evaluate(Says("poor", POOR), task)
    found = compare(one.run.id, other.run.id)
    assert (found.models, found.scorer, found.examples) == (("mixed", "poor"), "exact", 30)
    assert found.values == pytest.approx((28 / 30, 20 / 30))
    assert found.difference == pytest.approx(8 / 30)
    assert found.low < 8 / 30 < found.high
    assert found.only_first == tuple(range(0, 30, 3))
    assert found.only_second == (1, 2)
    assert found.mcnemar_p == pytest.approx(binomtest(10, 12, 0.5).pvalue)
    # the permutation test of 12 discordant pairs, all sign patterns counted
    signs = (np.arange(2**12)[:, None] >> np.arange(12) & 1) * 2 - 1
    exact = float(np.mean(np.abs(signs.sum(axis=1)) >= 8))
    assert found.permutation_p == pytest.approx(exact, abs=0.01)
    assert 0.0 < found.bootstrap_p < 0.05
    assert [(a.answer, b.answer) for a, b in changed(found)][:1] == [("0", "no")]
    assert [b.index for _, b in changed(found)][-2:] == [1, 2]
    back = compare(other.run.id, one.run.id)
    assert back.difference == pytest.approx(-8 / 30)
    assert (back.only_first, back.only_second) == (found.only_second, found.only_first)


def test_another_scorer_by_its_name(task: str) -> None:
    one, other = evaluate(Says("right", RIGHT), task), evaluate(Says("poor", POOR), task)
    found = compare(one.run.id, other.run.id, scorer="near")
    assert found.scorer == "near" and found.values[0] == 1.0
    with pytest.raises(InputError, match=r"must be one that both runs have; .* has exact, near; got 'bleu'"):
        compare(one.run.id, other.run.id, scorer="bleu")


def test_what_cannot_be_paired(task: str) -> None:
    whole, part = evaluate(Says("right", RIGHT), task), evaluate(Says("poor", POOR), task, limit=10)
    with pytest.raises(MismatchError, match="did not answer the same examples"):
        compare(whole.run.id, part.run.id)
    begun = start(open_store(), "eval", "half", {}, {})
    with pytest.raises(InputError, match="is running: it has no score yet"):
        compare(whole.run.id, begun.id)
