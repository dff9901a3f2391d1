"""Made-up traffic of users who have each their own favourite topic, length and rate of errors: rows of a user are alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.core.errors import DataError, InputError
from luthier.core.trace import Trace
from luthier.evaluation import two_samples
from luthier.evaluation.drift import compare_windows, drift
from luthier.evaluation.drift_page import figure_of, page, save_page, save_picture
from luthier.evaluation.drift_report import Drift
from luthier.evaluation.drift_rows import read_window, texts_window
from luthier.store.database import Store, open_store
from luthier.store.feedback import record_feedback
from luthier.store.traces import record_traces

TOPICS = (
    "refund money invoice card charge bank account return",
    "parcel courier address door delay tracking delivery van",
    "violin string bridge crack tuning repair workshop wood",
    "lesson teacher schedule piano student practice book course",
)


def traffic(
    seed: int, day: int, *, users: int = 60, each: int = 4, shares: Any = (1, 1, 1, 1), **changes: Any
) -> list[Trace]:
    """Requests of ``users`` over two days from ``day`` on; ``shares`` of the topics."""
    draw = np.random.default_rng(seed)
    out = []
    for user in range(users):
        favourite = draw.choice(4, p=np.array(shares) / sum(shares))
        length, slips = draw.integers(4, 16), draw.beta(1, 12)
        for turn in range(each):
            topic = favourite if draw.random() < 0.8 else draw.choice(4, p=np.array(shares) / sum(shares))
            words = draw.choice(TOPICS[topic].split(), int(length)).tolist()
            minute = int(draw.integers(0, 2 * 1440))
            failed = draw.random() < slips
            given: dict[str, Any] = {
                "messages": ({"role": "user", "content": f"please {' '.join(words)} thank you"},),
                "answer": "" if failed else "of course",
                "error": "down" if failed else "",
                "details": {"error": [{"kind": "engine_error"}]} if failed else {},
                "parameters": {"user": f"u{seed}-{user}"},
                "completion_tokens": int(draw.integers(2, 40)),
                "finish_reason": "stop" if draw.random() < 0.9 else "length",
                "latency_s": float(draw.gamma(2.0)),
                "model_digest": "d1",
            }
            at = f"2026-01-{day + minute // 1440:02d}T{minute % 1440 // 60:02d}:{minute % 60:02d}:00.000Z"
            out.append(Trace(f"t{seed}-{user}-{turn}", at, "m", "chat", **given | changes))
    return sorted(out, key=lambda trace: trace.created_at)


def report(first: list[Trace], second: list[Trace], seed: int = 0) -> Drift:
    return compare_windows("m", read_window("before", first), read_window("now", second), seed=seed)


def named(found: Drift) -> set[str]:
    return {f"{signal.group}: {signal.name}" for signal in found.shifted}


def test_no_alarm_where_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The level is of the whole report: of 30, 1.5 are expected to alarm, and 6 or more come once in 300 times."""
    monkeypatch.setattr(two_samples, "SHUFFLES", 500)
    monkeypatch.setattr(two_samples, "RESAMPLES", 5)
    monkeypatch.setattr("luthier.evaluation.drift_signals.separability", lambda samples, vectors: (0.5, 0.5, 0.5))
    alarms = [named(report(traffic(2 * seed, 1), traffic(2 * seed + 1, 5), seed)) for seed in range(30)]
    assert sum(map(bool, alarms)) < 6, alarms


def test_other_prompts() -> None:
    found = report(traffic(0, 1), traffic(1, 5, shares=(1, 1, 1, 6)))
    assert {"prompts: meaning", "prompts: topics"} <= named(found)
    assert not any(name.startswith("answers") for name in named(found))
    assert found.separability is not None
    assert found.separability[1] > 0.5
    grown = max(found.topics, key=lambda topic: topic["now"] - topic["baseline"])
    assert set(str(grown["name"]).split(", ")) & set(TOPICS[3].split())
    assert any(word in found.new[0] for word in TOPICS[3].split())


def test_another_language_and_longer_prompts() -> None:
    german = ({"role": "user", "content": "Wo bleibt denn mein Paket, das ich schon am letzten Montag bestellt habe?"},)
    second = traffic(1, 5)
    mixed = [trace if at % 3 else Trace(**{**vars(trace), "messages": german}) for at, trace in enumerate(second)]
    found = report(traffic(0, 1), mixed)
    assert "prompts: language" in named(found)
    language = next(signal for signal in found.signals if signal.name == "language")
    assert "de 33%" in language.now or "de 34%" in language.now


def test_other_answers_of_the_same_and_of_other_weights() -> None:
    base = traffic(0, 1)
    refusing = traffic(1, 5)
    refusing = [
        trace if at % 4 else Trace(**{**vars(trace), "answer": "I'm sorry, but I can't help.", "error": ""})
        for at, trace in enumerate(refusing)
    ]
    found = report(base, refusing)
    assert "answers: refusals" in named(found)
    assert any("same weights answered" in note for note in found.notes)
    rate = next(signal for signal in found.signals if signal.name == "refusals")
    assert rate.low is not None
    assert rate.low > 0.1
    swapped = report(base, traffic(1, 5, model_digest="d2"))
    assert any("d2 came, d1 went" in note for note in swapped.notes)
    failing = report(base, traffic(1, 5, error="down", answer="", details={"error": [{"kind": "queue_full"}]}))
    assert "answers: errors" in named(failing)


def test_labels_log_probabilities_ratings_and_what_people_do() -> None:
    base = traffic(0, 1, answer="billing", error="", details={"answer": [{"logprob": -1.0}]}, completion_tokens=2)
    labels = ["billing"] * 2 + ["refund"]
    now = [
        Trace(**{**vars(trace), "answer": labels[at % 3], "details": {"answer": [{"logprob": -3.0 - at % 5}]}})
        for at, trace in enumerate(traffic(1, 5, error="", completion_tokens=2))
    ]
    first, second = read_window("before", base), read_window("now", now)
    first.ratings = {row.id: 1 for row in first.rows}
    second.ratings = {row.id: -1 if at % 2 else 1 for at, row in enumerate(second.rows)}
    second.events = {row.id: {"regenerated"} for at, row in enumerate(second.rows) if at % 4 == 0}
    found = compare_windows("m", first, second)
    assert {
        "answers: labels",
        "answers: log-probability a token",
        "answers: rated good",
        "people: regenerated",
    } <= named(found)
    rated = next(signal for signal in found.signals if signal.name == "rated good")
    assert rated.now.startswith("50.0% (")
    assert rated.effect == pytest.approx(-0.5)


def test_windows_that_are_too_small_say_so_and_alarm_at_nothing() -> None:
    found = report(traffic(0, 1, users=10), traffic(1, 5, users=10, shares=(0, 0, 0, 1), model_digest="d9"))
    assert found.shifted == ()
    assert "from 30 in each on" in found.notes[0]
    assert all(signal.p is None for signal in found.signals if "too few" in signal.note)
    few = next(signal for signal in found.signals if signal.name == "meaning")
    assert "10 and 10, 30 are needed" in few.note
    assert found.detectable > 0.5


def test_one_loud_user_is_no_drift() -> None:
    """A thousand requests of one new user shift every share, and say nothing of the others."""
    loud = traffic(7, 5, users=1, each=300, shares=(0, 0, 0, 1))
    assert named(report(traffic(0, 1), sorted(traffic(1, 5) + loud, key=lambda trace: trace.created_at))) == set()


def test_against_a_dataset_only_prompts_are_compared() -> None:
    texts = [trace.messages[0]["content"] for trace in traffic(0, 1)]
    found = compare_windows(
        "m", texts_window("train.jsonl", texts), read_window("now", traffic(1, 5, shares=(1, 1, 1, 6)))
    )
    assert {signal.group for signal in found.signals} == {"prompts"}
    assert "prompts: meaning" in named(found)


def test_pictures_and_pages(tmp_path: Path) -> None:
    odd = ({"role": "user", "content": "<script>alert('x')</script> piano lesson piano lesson"},)
    second = [Trace(**{**vars(t), "messages": odd}) if at % 2 else t for at, t in enumerate(traffic(1, 5))]
    found = report(traffic(0, 1), second)
    text = page(found)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert text.count('<tr class="shifted">') == len(found.shifted) > 0
    assert len(figure_of(found).axes) == 4
    save_picture(found, tmp_path / "d.png")
    save_page(found, tmp_path / "d.html")
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="png: cannot write"):
        save_picture(found, tmp_path / "none" / "d.png")
    assert json.loads(json.dumps(found.as_dict()))["shifted"]


# ---- out of the store


@pytest.fixture
def store(home: Path) -> Store:
    store = open_store(home)
    record_traces(store, traffic(0, 1) + traffic(1, 5, shares=(1, 1, 1, 6)))
    return store


def test_windows_out_of_the_store(store: Store) -> None:
    times = {"since": "2026-01-05", "until": "2026-01-09"}
    found = drift("m", **times, baseline="2026-01-01..2026-01-04", store=store)
    assert "prompts: meaning" in named(found)
    assert (found.baseline["requests"], found.current["requests"]) == (240, 240)
    assert drift("m", **times, store=store).baseline["requests"] == 240, "as long a stretch right before"
    assert drift("m", **times, baseline="2026-01-02", store=store).baseline["requests"] < 240


def test_ratings_come_out_of_the_store(store: Store) -> None:
    for user in range(60):
        record_feedback(store, f"t0-{user}-0", rating=1)
        record_feedback(store, f"t1-{user}-0", rating=1 if user % 2 else -1)
    found = drift("m", since="2026-01-05", until="2026-01-09", store=store)
    assert "answers: rated good" in named(found)


def test_a_file_as_the_baseline(store: Store, tmp_path: Path) -> None:
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(json.dumps({"text": t.messages[0]["content"], "label": "x"}) + "\n" for t in traffic(3, 1)))
    found = drift("m", since="2026-01-05", until="2026-01-09", baseline=rows, store=store)
    assert found.baseline["name"] == str(rows)
    assert "prompts: meaning" in named(found)


def test_windows_that_cannot_be(store: Store) -> None:
    with pytest.raises(DataError, match="there is no trace of m since 1d"):
        drift("m", since="1d", store=store)
    with pytest.raises(DataError, match="from 2020-01-01 to 2020-02-01"):
        drift("m", since="2026-01-05", baseline="2020-01-01..2020-02-01", store=store)
    with pytest.raises(InputError, match="baseline must end before"):
        drift("m", since="2026-01-05", until="2026-01-09", baseline="2026-01-01..2026-01-07", store=store)
    with pytest.raises(InputError, match="since must be a time"):
        drift("m", since="lately", store=store)
