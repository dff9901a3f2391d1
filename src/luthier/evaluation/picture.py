"""The figures of one evaluation as a page: every score with its interval as a bar; nothing is fetched, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from luthier.evaluation.result import EvalResult
from luthier.store.home import write_atomic

_LEFT, _WIDTH, _ROW = 220, 420, 30
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --soft: #6b7280; --bar: #3b6fb6; --line: #d6dae0; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa3af; --bar: #6ea0e8; --line: #3a4048; --page: #16181c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; } text { fill: var(--ink); font: 13px system-ui, sans-serif; } .soft { fill: var(--soft); color: var(--soft); }
.bar { fill: var(--bar); } .track { fill: none; stroke: var(--line); } .reach { stroke: var(--ink); stroke-width: 1.5; }
"""


def write_page(result: EvalResult, path: Path) -> Path:
    """Write the page to ``path``, whole or not at all."""
    title = f"{result.model} on {result.task}"
    count = result.counts.get("examples", 0)
    latency = ", ".join(
        f"{name.removesuffix('_s')} {1000 * float(value):.1f} ms"
        for name, value in result.latency.items()
        if name.endswith("_s") and value is not None
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{count:,} questions, run {escape(result.run.id)}, 95% intervals. {escape(latency)}</p>',
        bars(result.scores),
    ]
    ranks = _ranks(result)
    if ranks:
        body += ["<h2>Where the first right passage stands</h2>", histogram(ranks)]
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    write_atomic(path, page + "".join(body) + "</html>\n")
    return path


def bars(scores: Mapping[str, Mapping[str, float]]) -> str:
    """A bar for every score that lies between 0 and 1, with its interval, as SVG."""
    shares = {name: score for name, score in scores.items() if score["low"] >= 0.0 and score["high"] <= 1.0}
    rows = []
    for number, (name, score) in enumerate(shares.items()):
        top = number * _ROW + 4
        low, high = (_LEFT + _WIDTH * score[end] for end in ("low", "high"))
        rows.append(
            f'<text x="{_LEFT - 10}" y="{top + 16}" text-anchor="end">{escape(name.replace("_", " "))}</text>'
            f'<rect class="track" x="{_LEFT}" y="{top + 2}" width="{_WIDTH}" height="18"/>'
            f'<rect class="bar" x="{_LEFT}" y="{top + 2}" width="{_WIDTH * score["value"]:.1f}" height="18"/>'
            f'<path class="reach" d="M{low:.1f} {top + 11}H{high:.1f}M{low:.1f} {top + 6}v10M{high:.1f} {top + 6}v10"/>'
            f'<text x="{_LEFT + _WIDTH + 10}" y="{top + 16}">{score["value"]:.3f} '
            f'<tspan class="soft">[{score["low"]:.3f}, {score["high"]:.3f}]</tspan></text>'
        )
    return _svg(_LEFT + _WIDTH + 170, len(shares) * _ROW + 8, rows, "scores with their intervals")


def histogram(counts: Sequence[tuple[str, int]]) -> str:
    """Columns with their counts, as SVG."""
    most = max(count for _, count in counts)
    step = min(70, 760 // len(counts))
    columns = []
    for number, (name, count) in enumerate(counts):
        height = 150 * count / most if most else 0
        left = number * step + 20
        columns.append(
            f'<rect class="bar" x="{left}" y="{180 - height:.1f}" width="{step - 8}" height="{height:.1f}"/>'
            f'<text x="{left + step / 2 - 4}" y="{172 - height:.1f}" text-anchor="middle">{count:,}</text>'
            f'<text class="soft" x="{left + step / 2 - 4}" y="198" text-anchor="middle">{escape(name)}</text>'
        )
    return _svg(max(step * len(counts) + 40, 300), 206, columns, "how often the first right passage has each rank")


def _svg(width: int, height: int, parts: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _ranks(result: EvalResult, most: int = 10) -> list[tuple[str, int]]:
    """How many questions have their first right passage at each rank; empty where no search was measured."""
    detail = next((name for name in result.scores if name.startswith(("recall@", "hit_rate@"))), None)
    told = [r.details.get(detail, {}) for r in result.records if detail in r.scores] if detail else []
    ranks = [each["rank"] for each in told if "rank" in each]
    if not ranks:
        return []
    out = [(str(rank), sum(each == rank for each in ranks)) for rank in range(1, most + 1)]
    later = sum(each is not None and each > most for each in ranks)
    return [*out, *([("later", later)] if later else []), ("not found", sum(each is None for each in ranks))]
