"""A board of five entrants and a failed one, with names and labels that would break a page which does not escape them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest

from luthier.tournament.board import Board, Comparison, Standing, rank
from luthier.tournament.verdict import decide

EVIL = "<script>document.title='broken'</script>"
LABELS = ("billing", "refund", f"a&b \"'{EVIL}")
#       name         way            model         score  latency memory trained     base   artifact seconds
ROWS = (
    ("zero-shot", "zero_shot", "smollm2-135m", 0.14, 0.061, 269.0, 0, 371.0, 0.0, None),
    ("few-shot", "few_shot", "smollm2-135m", 0.31, 0.190, 269.0, 0, 371.0, 0.0, None),
    (f"lora {EVIL}", "lora", "smollm2-135m", 0.845, 0.064, 272.0, 920_000, 371.0, 1.9, 214.0),
    ("linear-probe", "linear_probe", "minilm-l6", 0.868, 0.0041, 45.6, 3_850, 91.6, 0.02, 11.0),
    ("full", "full", "minilm-l6", 0.885, 0.0042, 45.6, 22_600_000, 91.6, 45.0, 96.0),
)


def _standing(row: tuple[Any, ...]) -> Standing:
    name, way, model, value, latency, memory, trained, base, artifact, seconds = row
    score = {"value": value, "low": value - 0.04, "high": value + 0.04, "level": 0.95}
    figures = {"precision": value, "recall": value, "f1": value, "support": 30.0}
    return Standing(
        name=name,
        way=way,
        model=model,
        status="done",
        score=score,
        scores={"macro_f1": score, "accuracy": score},
        labels=dict.fromkeys(LABELS, figures),
        confused=[[LABELS[0], LABELS[2], 7]],
        counts={"examples": 90, "unparsed": 0, "ties": 0, "errors": 0},
        trainable_parameters=trained,
        train_s=seconds,
        latency_p50_s=latency,
        latency_p95_s=latency and latency * 1.5,
        weights_mb=memory,
        base_mb=base,
        artifact_mb=artifact,
        target=name,
        eval_run="run_1",
        tune_run="run_2" if trained else "",
        settings={"method": {"name": way}},
        digests={"model": "ab" * 32},
    )


@pytest.fixture
def make_board() -> Callable[..., Board]:
    """Makes the board; with ``failed=False`` without the failed entrant, with ``rows`` other entrants."""

    def make(*, failed: bool = True, rows: tuple[tuple[Any, ...], ...] = ROWS) -> Board:
        standings = [_standing(row) for row in rows]
        if failed:
            reason = f"connection refused {EVIL}\n  check the address"
            standings.append(Standing("remote", "zero_shot", "openai:x@http://h/v1", "failed", reason=reason))
        ranked = rank(standings)
        done = [s for s in ranked if s.status == "done"]
        comparisons = []
        for a, b in combinations(done, 2):
            gap = a.score["value"] - b.score["value"]
            p = 0.21 if gap < 0.03 else 0.0002
            comparisons.append(Comparison(a.name, b.name, gap, gap - 0.03, gap + 0.03, p / 4, p))
        task = {
            "name": "support",
            "kind": "classify",
            "digest": "d" * 64,
            "splits_digest": "e" * 64,
            "sizes": {"train": 550, "validation": 90, "test": 280},
            "labels": list(LABELS),
            "prompt": {"instruction": f"Sort: {{labels}} {EVIL}", "input": "{input}", "labels": list(LABELS)},
            "scorers": [["macro_f1", {}], ["accuracy", {}]],
            "primary": "macro_f1",
            "command": ["luthier", "tournament", "my task.yaml", "train.epochs=1"],
        }
        verdict = decide(ranked, comparisons, "macro_f1").as_dict()
        machine = {
            "processor": "A CPU",
            "threads": 2,
            "platform": "Linux",
            "python": "3.12",
            "packages": {"torch": "2.13"},
        }
        return Board(
            "run_0",
            "support",
            "2026-01-31T09:30:00.000Z",
            task,
            ranked,
            tuple(comparisons),
            verdict,
            ("A note.",),
            machine,
        )

    return make
