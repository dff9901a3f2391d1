"""A drift report as a picture and as a page that stands alone: no script, nothing fetched, every text of users escaped."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import InputError
from luthier.evaluation.drift_report import Drift, Signal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE, NOW, CHANGED = "#8a8f98", "#2a6fbb", "#c0392b"
_GRID = "#d7d7d7"
_BARS = 8


def save_picture(report: Drift, path: Path) -> None:
    """A PNG: effects beside what chance gives, prompts in a plane, topics, and the categories that changed most. Raises InputError."""
    _written(path, lambda: path.write_bytes(_png(report)), "png")


def save_page(report: Drift, path: Path) -> None:
    """The report as one HTML file with its picture inside. Raises InputError."""
    _written(path, lambda: path.write_text(page(report), encoding="utf-8"), "html")


def _written(path: Path, write: Any, option: str) -> None:
    try:
        write()
    except OSError as error:
        raise InputError(f"{option}: cannot write {path}: {error}") from error


def _png(report: Drift) -> bytes:
    buffer = io.BytesIO()
    figure_of(report).savefig(buffer, format="png")
    return buffer.getvalue()


def figure_of(report: Drift) -> Figure:
    """The picture as a matplotlib figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure as Made

    figure = Made(figsize=(13, 9), dpi=110, layout="constrained")
    figure.suptitle(
        f"{report.model}: {report.current['name']} against {report.baseline['name']}", x=0.01, ha="left", weight="bold"
    )
    panels = figure.subplots(2, 2)
    _effects(panels[0, 0], report)
    _plane(panels[0, 1], report)
    _bars(panels[1, 0], "topics of prompts", {str(t["name"]): (t["baseline"], t["now"]) for t in report.topics})
    name = _most_changed(report)
    _bars(panels[1, 1], name or "categories", dict(report.shares.get(name, {})))
    return figure


def _effects(axes: Any, report: Drift) -> None:
    """Each effect as a multiple of what 95% of shuffles stay below: beyond 1 is more than chance usually gives."""
    tested = [signal for signal in report.signals if signal.effect is not None and signal.by_chance]
    names = [f"{signal.group}: {signal.name}" for signal in tested]
    times = [min(20.0, abs(signal.effect or 0.0) / (signal.by_chance or 1.0)) for signal in tested]
    colours = [CHANGED if signal.shifted else BEFORE for signal in tested]
    axes.barh(names, times, color=colours)
    axes.axvline(1.0, color="black", linewidth=1, linestyle="--")
    axes.invert_yaxis()
    axes.set_xlabel("effect / what 95% of chance stays below (at most 20 shown); red: changed")
    _plain(axes, "what changed", "x")


def _plane(axes: Any, report: Drift) -> None:
    for now, colour, label in ((False, BEFORE, "baseline"), (True, NOW, "now")):
        points = [(x, y) for x, y, side in report.points if side is now]
        axes.scatter(
            [x for x, _ in points], [y for _, y in points], s=8, alpha=0.6, color=colour, label=label, linewidths=0
        )
    if report.points:
        axes.legend(frameon=False)
    auc = f", AUC {report.separability[0]:.2f}" if report.separability else ""
    _plain(axes, f"prompts in a plane{auc}", "both")
    axes.set_xticks([])
    axes.set_yticks([])


def _bars(axes: Any, title: str, shares: dict[str, tuple[float, float]]) -> None:
    shown = sorted(shares.items(), key=lambda item: -abs(item[1][1] - item[1][0]))[:_BARS][::-1]
    places = range(len(shown))
    axes.barh([at + 0.2 for at in places], [both[0] for _, both in shown], height=0.38, color=BEFORE, label="baseline")
    axes.barh([at - 0.2 for at in places], [both[1] for _, both in shown], height=0.38, color=NOW, label="now")
    axes.set_yticks(list(places), [name[:40] for name, _ in shown])
    if shown:
        axes.legend(frameon=False, loc="lower right")
    _plain(axes, title, "x")


def _plain(axes: Any, title: str, grid: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(color=_GRID, axis=grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _most_changed(report: Drift) -> str:
    named = [signal for signal in report.signals if signal.name in report.shares and signal.effect is not None]
    return (
        max(named, key=lambda signal: (signal.shifted, abs(signal.effect or 0.0) / (signal.by_chance or 1.0))).name
        if named
        else ""
    )


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;width:100%;font-size:14px}th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #ddd;vertical-align:top}
td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}tr.shifted td{background:#fdecea}.small{color:#777}img{max-width:100%}
@media (prefers-color-scheme:dark){body{background:#16181c;color:#ddd}th,td{border-color:#333}tr.shifted td{background:#4a1f1b}img{background:#fff}}
"""


def page(report: Drift) -> str:
    """The HTML text."""
    changed = ", ".join(f"{signal.group}: {signal.name}" for signal in report.shifted)
    verdict = f"Changed: {changed}." if changed else "Nothing changed more than chance explains."
    rows = "\n".join(_row(signal) for signal in report.signals)
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in report.notes)
    new = "".join(f"<li>{html.escape(text[:300])}</li>" for text in report.new)
    image = base64.b64encode(_png(report)).decode("ascii")
    windows = "".join(
        f"<li>{label}: {html.escape(str(window['name']))}, {window['requests']:,} requests of {window['users']:,} users or sessions</li>"
        for label, window in (("baseline", report.baseline), ("now", report.current))
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Drift of {html.escape(report.model)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>Drift of {html.escape(report.model)}</h1><ul>{windows}</ul>"
        f"<p><strong>{html.escape(verdict)}</strong> Family-wise level {report.level:g} over all signals (Holm). A change of a share near one half "
        f"by {report.detectable:.0%} would be seen four times in five.</p>{notes}"
        "<table><thead><tr><th>signal</th><th>baseline</th><th>now</th><th>effect</th><th>95% of chance</th><th>p (Holm)</th><th></th></tr></thead>"
        f'<tbody>{rows}</tbody></table><p><img alt="effects, prompts in a plane, topics, categories" src="data:image/png;base64,{image}"></p>'
        + (f"<h2>Prompts least like those of the baseline</h2><ul>{new}</ul>" if new else "")
        + "</body></html>"
    )


def _row(signal: Signal) -> str:
    effect = f"{signal.measure} {interval_text(signal)}" if signal.effect is not None else ""
    chance = f"{signal.by_chance:.4g}" if signal.by_chance is not None else ""
    p = f"{signal.p_adjusted:.3g}" if signal.p_adjusted is not None else ""
    cells = [f"{signal.group}: {signal.name}", signal.baseline, signal.now]
    words = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    figures = "".join(f'<td class="n">{html.escape(cell)}</td>' for cell in (effect, chance, p))
    kind = ' class="shifted"' if signal.shifted else ""
    return f'<tr{kind}>{words}{figures}<td class="small">{html.escape(signal.note)}</td></tr>'


def interval_text(signal: Signal) -> str:
    """An effect with its interval; differences of shares in points."""
    effect, low, high = (float(value or 0.0) for value in (signal.effect, signal.low, signal.high))
    if signal.measure == "difference":
        return f"{effect:+.1%} ({low:+.1%} to {high:+.1%})"
    return f"{effect:.3g} ({low:.3g} to {high:.3g})"
