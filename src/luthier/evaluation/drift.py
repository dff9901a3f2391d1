"""Drift: whether what is asked, what is answered and what people do changed between two stretches of time, and whether that can be chance.

Each signal is tested by shuffling whole users (or sessions) between the windows, and the p values are adjusted together (Holm 1979), so that
traffic that did not change raises any alarm at all in at most ``LEVEL`` of the reports. Windows that are too small say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from luthier.core.engine import EMBED, require
from luthier.core.errors import DataError, InputError
from luthier.evaluation.drift_report import FEWEST, LEVEL, Drift, Signal
from luthier.evaluation.drift_rows import DriftWindow, read_window, texts_window
from luthier.evaluation.drift_signals import Comparison
from luthier.evaluation.drift_topics import Embed
from luthier.evaluation.held_out import held_out_texts
from luthier.evaluation.statistics import holm
from luthier.evaluation.two_samples import detectable
from luthier.store.database import Store, open_store
from luthier.store.feedback import list_feedback
from luthier.store.trace_query import TraceFilter, iterate_traces, moment


def drift(
    model: str,
    *,
    since: str = "7d",
    until: str | None = None,
    baseline: str | Path | None = None,
    embedder: str | None = None,
    tenant: str | None = None,
    route: str | None = None,
    store: Store | None = None,
    seed: int = 0,
) -> Drift:
    """Compare the traces of a model since ``since`` (until ``until``) with a baseline: ``FROM..TO`` (times, or times ago), one time (until
    ``since``), a file of examples (prompts only), or, left out, as long a stretch right before.

    ``embedder`` names a model that tells which prompts are alike; without one their words do. Raises DataError when a window has no trace,
    InputError for times that are none or windows that overlap.
    """
    store = store or open_store()
    begin, end = moment(since, "since"), moment(until, "until")
    wanted = TraceFilter(model=model, tenant=tenant, route=route)
    current = _window(
        store, f"since {since}" + (f" until {until}" if until else ""), replace(wanted, since=begin, until=end)
    )
    reference = _baseline(store, wanted, baseline, str(begin), end)
    for window, option in ((current, "--since"), (reference, "--baseline")):
        if not window.rows:
            raise DataError(
                f"there is no trace of {model} {window.name}",
                hint=f"luthier traces stats --model {model}   then choose another {option}",
            )
    if reference.prompts.keys() & current.prompts.keys():
        raise InputError("baseline must end before the other window begins: some traces are in both")
    return compare_windows(model, reference, current, embed=_embedder(store, embedder), seed=seed)


def compare_windows(
    model: str, baseline: DriftWindow, current: DriftWindow, *, embed: Embed | None = None, seed: int = 0
) -> Drift:
    """The report over two windows."""
    comparison = Comparison(baseline, current, seed)
    texts = comparison.prompt_texts(embed)
    signals = [*comparison.prompt_figures(), *texts.signals]
    if not baseline.only_prompts:
        signals += comparison.answers()
        signals += comparison.people()
    signals = _adjusted(signals)
    first, second = (len({row.who for row in window.rows}) for window in (baseline, current))
    return Drift(
        model=model,
        baseline=_about(baseline),
        current=_about(current),
        signals=tuple(signals),
        detectable=detectable(first, second),
        separability=texts.separability,
        new=texts.new,
        topics=texts.topics,
        notes=tuple(_notes(baseline, current, signals, first, second)),
        points=texts.points,
        shares=comparison.shares,
    )


def _adjusted(signals: Sequence[Signal]) -> list[Signal]:
    tested = [at for at, signal in enumerate(signals) if signal.p is not None]
    adjusted = holm([float(signals[at].p or 0.0) for at in tested])
    out = list(signals)
    for at, p in zip(tested, adjusted, strict=True):
        out[at] = replace(out[at], p_adjusted=p, shifted=p <= LEVEL)
    return out


# ---- windows


def _window(store: Store, name: str, wanted: TraceFilter) -> DriftWindow:
    window = read_window(name, iterate_traces(store, wanted))
    ids = {row.id for row in window.rows}
    for trace, said in list_feedback(store, wanted.model, tenant=wanted.tenant):
        if trace.id in ids and said.verdict:
            window.ratings[trace.id] = said.verdict
    return window


def _baseline(store: Store, wanted: TraceFilter, given: str | Path | None, begin: str, end: str | None) -> DriftWindow:
    if given is not None and Path(given).is_file():
        return texts_window(str(given), held_out_texts(given))
    if given is None:
        start = datetime.fromisoformat(begin)
        stop = datetime.fromisoformat(end) if end is not None else datetime.now(UTC)
        before = (start - (stop - start)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return _window(store, f"from {before[:16]} to {begin[:16]} UTC", replace(wanted, since=before, until=begin))
    first, dots, last = str(given).partition("..")
    since, until = moment(first, "baseline"), moment(last, "baseline") if dots and last else begin
    if until is not None and until > begin:
        raise InputError(f"baseline must end before the other window begins ({begin[:19]}); it ends {until[:19]}")
    return _window(store, f"from {first} to {last or begin[:16]}", replace(wanted, since=since, until=until))


def _embedder(store: Store, name: str | None) -> Embed | None:
    if name is None:
        return None
    from luthier.strategies._load import load

    engine = load(name, store=store)
    require(engine, EMBED)
    return lambda texts: engine.embed(list(texts))


def _about(window: DriftWindow) -> dict[str, Any]:
    times = sorted(row.at for row in window.rows)
    return {
        "name": window.name,
        "requests": len(window.rows),
        "users": len({row.who for row in window.rows}),
        "first": times[0].isoformat() if times and not window.only_prompts else None,
        "last": times[-1].isoformat() if times and not window.only_prompts else None,
        "digests": dict(window.digests().most_common()),
    }


def _notes(
    baseline: DriftWindow, current: DriftWindow, signals: Sequence[Signal], first: int, second: int
) -> list[str]:
    out = []
    if min(first, second) < FEWEST:
        out.append(
            f"The windows hold {first} and {second} users or sessions: from {FEWEST} in each on something can be said."
        )
    before, now = baseline.digests(), current.digests()
    if before and now and set(before) != set(now):
        come = ", ".join(digest[:12] for digest in now if digest not in before) or "none new"
        gone = ", ".join(digest[:12] for digest in before if digest not in now) or "none gone"
        out.append(f"The model itself changed: {come} came, {gone} went. Changes of answers may be wanted.")
    elif before and now:
        out.append(
            "The same weights answered in both windows: what changed in the answers comes from prompts, settings or load."
        )
    moved = {signal.group for signal in signals if signal.shifted}
    if {"prompts", "answers"} <= moved:
        out.append("Prompts and answers both changed: answers may differ because other things are asked.")
    return out
