"""What is compared between two windows of traffic, and how it is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from luthier.evaluation.drift_report import FEWEST, Group, Signal
from luthier.evaluation.drift_rows import DriftRow, DriftWindow
from luthier.evaluation.drift_topics import Embed, flattened, hashed, topics_of
from luthier.evaluation.statistics import wilson_interval
from luthier.evaluation.two_samples import (
    Flags,
    Samples,
    Shift,
    codes_of,
    compare_numbers,
    compare_rates,
    compare_shares,
    compare_vectors,
    kernel_of,
    separability,
    witness,
)

_SHOWN = 5
_MOST_LABELS = 30

Said = tuple[str, str]


@dataclass(frozen=True)
class Texts:
    """What the texts of the prompts say: signals, topics, prompts least like the baseline's, how well a classifier tells the windows apart, and
    places in a plane with whether they are of now."""

    signals: tuple[Signal, ...]
    topics: tuple[Mapping[str, Any], ...] = ()
    new: tuple[str, ...] = ()
    separability: tuple[float, float, float] | None = None
    points: tuple[tuple[float, float, bool], ...] = ()


class Comparison:
    """Two windows side by side: rows of the baseline first."""

    def __init__(self, baseline: DriftWindow, current: DriftWindow, seed: int) -> None:
        self.baseline, self.current, self.seed = baseline, current, seed
        self.rows = [*baseline.rows, *current.rows]
        self.second = np.array([False] * len(baseline.rows) + [True] * len(current.rows))
        self.samples = _samples([row.who for row in self.rows], self.second, seed)
        self.shares: dict[str, dict[str, tuple[float, float]]] = {}

    def prompt_figures(self) -> list[Signal]:
        """Length, language, earlier turns."""
        known = [bool(row.language) for row in self.rows]
        out = [
            self.numbers("prompts", "length (words)", [float(row.words) if row.words else None for row in self.rows]),
            self.kinds(
                "prompts", "language", [row.language if ok else None for row, ok in zip(self.rows, known, strict=True)]
            ),
        ]
        if not self.baseline.only_prompts:
            out.append(
                self.numbers("prompts", "user turns", [float(row.turns) if row.turns else None for row in self.rows])
            )
        return out

    def answers(self) -> list[Signal]:
        """What the model does."""
        rows = self.rows
        labels = [row.label or None for row in rows]
        distinct = Counter(label for label in labels if label)
        out = [
            self.numbers("answers", "length (tokens)", [_number(row.answer_tokens) for row in rows]),
            self.rate("answers", "refusals", [row.refused for row in rows]),
            self.numbers("answers", "log-probability a token", [row.logprob for row in rows], 3),
            self.rate("answers", "errors", [bool(row.error) for row in rows]),
            self.kinds("answers", "finish reason", [row.finish_reason or None for row in rows]),
            self.numbers("answers", "seconds in all", [row.latency_s if not row.error else None for row in rows], 3),
            self.rate("answers", "rated good", [self._rating(row) for row in rows]),
        ]
        if len(distinct) <= _MOST_LABELS and sum(distinct.values()) >= 0.9 * sum(
            row.refused is not None for row in rows
        ):
            out.insert(1, self.kinds("answers", "labels", labels))
        if len({row.error for row in rows if row.error}) > 1:
            out.insert(5, self.kinds("answers", "kinds of errors", [row.error or None for row in rows]))
        return out

    def people(self) -> list[Signal]:
        """What people do."""
        whole_day = all(_span(window) >= timedelta(days=1) for window in (self.baseline, self.current))
        hours = [f"{row.at.hour // 4 * 4:02d}-{row.at.hour // 4 * 4 + 4:02d} h" for row in self.rows]
        named = [bool(row.session) for row in self.rows]
        out = [self._sessions()]
        for event in ("regenerated", "rephrased"):
            out.append(
                self.rate(
                    "people",
                    event,
                    [self._event(row, event) if ok else None for row, ok in zip(self.rows, named, strict=True)],
                )
            )
        out.append(self.rate("people", "stopped early", [self._event(row, "stopped") for row in self.rows]))
        out.append(
            self.kinds("people", "hour (UTC)", [*hours])
            if whole_day
            else Signal("people", "hour (UTC)", "", "", note="a window is shorter than a day")
        )
        return out

    def prompt_texts(self, embed: Embed | None) -> Texts:
        """What the sampled prompts are about: the distribution of their vectors, and topics."""
        texts = [*self.baseline.prompts.values(), *self.current.prompts.values()]
        second = np.array([False] * len(self.baseline.prompts) + [True] * len(self.current.prompts))
        who = {row.id: row.who for row in self.rows}
        ids = [*self.baseline.prompts, *self.current.prompts]
        samples = _samples([who[each] for each in ids], second, self.seed)
        about = f"{int((~second).sum()):,} prompts", f"{int(second.sum()):,} prompts"
        if self._small(samples):
            return Texts((Signal("prompts", "meaning", *about, note=_too_small(samples)),))
        vectors = (embed or hashed)(texts)
        kernel = kernel_of(vectors)
        shift = compare_vectors(samples, kernel)
        like = witness(kernel, second)
        new = list(dict.fromkeys(texts[at] for at in np.argsort(-np.where(second, like, -np.inf)) if like[at] > 0))[
            :_SHOWN
        ]
        flat = flattened(vectors, self.seed)
        codes, topics = topics_of(texts, flat, second, self.seed)
        shift_of_topics = compare_shares(samples, codes, len(topics))
        most = max(topics, key=lambda topic: abs(topic["now"] - topic["baseline"]))
        note = f"{most['name']}: {most['baseline']:.1%} to {most['now']:.1%}"
        found = (
            _signal("prompts", "meaning", *about, "MMD²", shift),
            _signal("prompts", "topics", f"{len(topics)} topics", "", "JS", shift_of_topics, note),
        )
        points = tuple((float(x), float(y), bool(side)) for (x, y), side in zip(flat[:, :2], second, strict=True))
        return Texts(found, tuple(topics), tuple(new), separability(samples, flat), points)

    def numbers(self, group: Group, name: str, values: Sequence[float | None], digits: int = 1) -> Signal:
        """Numbers, of the rows that have one."""
        have, samples, side = self._having(values)
        given = np.array([value for value in values if value is not None], dtype=float)
        said: Said = tuple(_middle(given[side == which], digits) for which in (False, True))  # type: ignore[assignment]
        if not have or self._small(samples):
            return Signal(group, name, *said, note=_too_small(samples))
        if len(np.unique(given)) < 2:
            return Signal(group, name, *said, note="all are equal")
        return _signal(group, name, *said, "PSI", compare_numbers(samples, given))

    def kinds(self, group: Group, name: str, values: Sequence[str | None]) -> Signal:
        """Categories, of the rows that have one."""
        have, samples, side = self._having(values)
        given = [value for value in values if value is not None]
        if not have or self._small(samples):
            return Signal(group, name, "", "", note=_too_small(samples))
        codes, names = codes_of(given)
        shares = {
            label: (float((codes[~side] == at).mean()), float((codes[side] == at).mean()))
            for at, label in enumerate(names)
        }
        self.shares[name] = shares
        said: Said = tuple(_first_shares({label: both[which] for label, both in shares.items()}) for which in (0, 1))  # type: ignore[assignment]
        if len(names) < 2:
            return Signal(group, name, *said, note="all are equal")
        most = max(shares, key=lambda label: abs(shares[label][1] - shares[label][0]))
        note = f"{most}: {shares[most][0]:.1%} to {shares[most][1]:.1%}"
        return _signal(group, name, *said, "JS", compare_shares(samples, codes, len(names)), note)

    def rate(self, group: Group, name: str, flags: Sequence[bool | None]) -> Signal:
        """A share, of the rows that can have it."""
        have, samples, side = self._having(flags)
        given = np.array([bool(flag) for flag in flags if flag is not None])
        said: Said = tuple(_rate(given[side == which]) for which in (False, True))  # type: ignore[assignment]
        if not have or self._small(samples):
            return Signal(group, name, *said, note=_too_small(samples))
        if len(set(given.tolist())) < 2:
            return Signal(
                group, name, *said, note="none in either window" if not given.any() else "all in both windows"
            )
        return _signal(group, name, *said, "difference", compare_rates(samples, given))

    def _sessions(self) -> Signal:
        """Requests of a session: one number a session."""
        sizes: Counter[tuple[bool, str]] = Counter(
            (bool(side), row.session) for row, side in zip(self.rows, self.second, strict=True) if row.session
        )
        side = np.array([which for which, _ in sizes], dtype=bool)
        given = np.array(list(sizes.values()), dtype=float)
        said: Said = tuple(_middle(given[side == which], 1) for which in (False, True))  # type: ignore[assignment]
        samples = Samples(np.arange(len(given)), side, self.seed)
        if self._small(samples):
            return Signal("people", "requests a session", *said, note=_too_small(samples, "sessions"))
        if len(np.unique(given)) < 2:
            return Signal("people", "requests a session", *said, note="all are equal")
        return _signal("people", "requests a session", *said, "PSI", compare_numbers(samples, given))

    def _having(self, values: Sequence[Any]) -> tuple[bool, Samples, Flags]:
        rows = np.array([value is not None for value in values])
        samples, _ = self.samples.only(rows)
        return bool(rows.any()), samples, self.second[rows]

    def _small(self, samples: Samples) -> bool:
        return min(int(samples.second.sum()), int((~samples.second).sum())) < FEWEST

    def _rating(self, row: DriftRow) -> bool | None:
        rating = self.baseline.ratings.get(row.id) or self.current.ratings.get(row.id)
        return None if rating is None else rating > 0

    def _event(self, row: DriftRow, event: str) -> bool:
        return event in self.baseline.events.get(row.id, ()) or event in self.current.events.get(row.id, ())


def _samples(who: Sequence[str], second: Flags, seed: int) -> Samples:
    """Clusters are who asked, in each window by itself."""
    keys = [(bool(side), name) for side, name in zip(second, who, strict=True)]
    place = {key: at for at, key in enumerate(dict.fromkeys(keys))}
    return Samples(
        np.array([place[key] for key in keys], dtype=np.int64), np.array([side for side, _ in place], dtype=bool), seed
    )


def _signal(group: Group, name: str, baseline: str, now: str, measure: str, shift: Shift, note: str = "") -> Signal:
    return Signal(
        group, name, baseline, now, measure, shift.effect, shift.low, shift.high, shift.by_chance, shift.p, note=note
    )


def _too_small(samples: Samples, what: str = "users or sessions") -> str:
    first, second = int((~samples.second).sum()), int(samples.second.sum())
    return f"too few {what} to say anything: {first} and {second}, {FEWEST} are needed in each window"


def _number(value: int | None) -> float | None:
    return float(value) if value is not None else None


def _middle(values: Any, digits: int) -> str:
    return f"median {np.median(values):.{digits}f}, mean {np.mean(values):.{digits}f}" if len(values) else ""


def _rate(flags: Any) -> str:
    if not len(flags):
        return ""
    interval = wilson_interval(float(np.mean(flags)), len(flags))
    return f"{interval.value:.1%} ({interval.low:.1%} to {interval.high:.1%}) of {len(flags):,}"


def _first_shares(shares: Mapping[str, float]) -> str:
    first = sorted(shares.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {share:.0%}" for name, share in first if share >= 0.005)


def _span(window: DriftWindow) -> timedelta:
    times = [row.at for row in window.rows]
    return max(times) - min(times) if times else timedelta()
