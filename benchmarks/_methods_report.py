"""The table and the picture of ``methods.py`` from its lines."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

SIDES = ("luthier", "peer", "tuned")
GROUPS = {
    "low rank": ("#2b6cb0", ("lora", "dora", "adalora", "loha", "lokr", "vera", "lora_and_embeddings", "qlora")),
    "part of the weights": (
        "#2f855a",
        ("full", "freeze", "bitfit", "layer_norm", "attention_only", "linear_probe", "diff_pruning", "fish_mask"),
    ),
    "scaling and turning": ("#b7791f", ("ia3", "oft", "peft")),
    "adapter layers": (
        "#c53030",
        (
            "adapter",
            "pfeiffer_adapter",
            "parallel_adapter",
            "compacter",
            "ladder_side",
            "adapter_fusion",
            "language_adapter",
        ),
    ),
    "soft prompts": ("#6b46c1", ("prompt", "p_tuning", "prefix", "p_tuning_v2")),
    "several together": ("#0f766e", ("mam", "unipelt")),
}


def summary(lines: list[dict[str, Any]], speed: str = "tokens_per_s") -> list[dict[str, Any]]:
    """A row a model and method: of each side the medians, the ratio of speeds, the mean and spread of the quality over seeds.

    ``speed``: which of the speeds is told, and the ratio is of.
    """
    grouped: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if "tokens_per_s" in line:
            grouped[line["model"], line["method"]][line["side"]].append(line)
    out = []
    for (model, method), sides in grouped.items():
        if "luthier" not in sides:
            continue
        row: dict[str, Any] = {"model": model, "method": method, "sides": {}}
        for side in (side for side in SIDES if side in sides):
            listed = sides[side]
            row["sides"][side] = {
                "trainable": int(statistics.median(line["trainable"] for line in listed)),
                "tokens_per_s": round(statistics.median(line[speed] for line in listed), 1),
                **{k: round(statistics.median(line[k] for line in listed), 1) for k in ("peak_mb", "over_base_mb")},
                "ratio": _ratio(sides["luthier"], listed, speed) if side != "luthier" else None,
                "quality": _quality(listed),
            }
        out.append(row)
    return out


def _ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], name: str) -> float | None:
    """The median over the trainings that both made (same set and seed)."""
    speed = {(line["dataset"], line["seed"]): line[name] for line in theirs}
    pairs = [line[name] / speed[at] for line in ours if (at := (line["dataset"], line["seed"])) in speed]
    return statistics.median(pairs) if pairs else None


def _quality(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Macro F1 x 100: the mean over sets and seeds, the spread over seeds within a set, and the means of the sets."""
    sets: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        if line["macro_f1"] is not None:
            sets[line["dataset"]].append(100 * line["macro_f1"])
    if not sets:
        return None
    spreads = [statistics.stdev(values) for values in sets.values() if len(values) > 1]
    return {
        "mean": round(statistics.mean(statistics.mean(values) for values in sets.values()), 1),
        "spread": round(statistics.mean(spreads), 1) if spreads else None,
        "seeds": max(len(values) for values in sets.values()),
        "sets": {name: round(statistics.mean(values), 1) for name, values in sets.items()},
    }


def table(found: list[dict[str, Any]], model: str) -> str:
    """Markdown: fewest trained parameters first."""
    head = (
        "method",
        "trained",
        "tokens/s",
        "x PEFT",
        "x PEFT tuned",
        "over base, MB",
        "PEFT, tuned",
        "macro F1",
        "PEFT, tuned",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    rows = sorted((row for row in found if row["model"] == model), key=lambda row: row["sides"]["luthier"]["trainable"])
    for row in rows:
        ours = row["sides"]["luthier"]
        theirs = [row["sides"].get(side) for side in ("peer", "tuned")]
        cells = [
            row["method"],
            _count(ours["trainable"]),
            f"{ours['tokens_per_s']:,.0f}",
            *(f"{own['ratio']:.1f}" if own and own["ratio"] else "" for own in theirs),
            f"{ours['over_base_mb']:,.0f}",
            " / ".join(f"{own['over_base_mb']:,.0f}" if own else "-" for own in theirs) if any(theirs) else "",
            _told(ours["quality"]),
            " / ".join(_told(own["quality"]) if own else "-" for own in theirs) if any(theirs) else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _count(number: int) -> str:
    return f"{number / 1e6:.2f}M" if number >= 1e6 else f"{number / 1e3:.1f}K"


def _told(quality: dict[str, Any] | None) -> str:
    if quality is None:
        return "-"
    return f"{quality['mean']:.1f}" + (f" ± {quality['spread']:.1f}" if quality["spread"] is not None else "")


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Quality against trained parameters (log), one panel a model; the bar is the spread over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(row["model"] for row in found))
    if not models:
        return
    colours = {method: (colour, group) for group, (colour, methods) in GROUPS.items() for method in methods}
    figure, axes = plt.subplots(1, len(models), figsize=(6.4 * len(models), 4.8), squeeze=False, layout="constrained")
    shown: dict[str, Any] = {}
    for axis, model in zip(axes[0], models, strict=True):
        points = []
        for row in (row for row in found if row["model"] == model):
            own = row["sides"]["luthier"]
            if own["quality"] is None:
                continue
            colour, group = colours.get(row["method"], ("#4a5568", "others"))
            x, y, spread = own["trainable"], own["quality"]["mean"], own["quality"]["spread"]
            axis.errorbar(x, y, yerr=spread, color=colour, alpha=0.35, lw=1, zorder=2)
            shown[group] = axis.scatter(x, y, s=42, color=colour, edgecolor="white", lw=0.8, zorder=3, label=group)
            points.append((x, y, row["method"], colour))
        axis.set_xscale("log")
        axis.margins(x=0.18, y=0.1)
        figure.canvas.draw()
        _label(axis, points)
        axis.set_title(model, fontsize=11, loc="left", fontweight="bold")
        axis.set_xlabel("trained parameters")
        axis.set_ylabel("macro F1 x 100, test")
        axis.grid(alpha=0.2, which="major")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncol=len(shown), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _label(axis: Any, points: list[tuple[float, float, str, str]]) -> None:
    """Names beside the points, each at the first of a few places where it covers no other name and no point."""
    to_screen, renderer = axis.transData.transform, axis.figure.canvas.get_renderer()
    taken = [(*(to_screen((x, y)) - 5), *(to_screen((x, y)) + 5)) for x, y, _, _ in points]
    places = [(7, -3, "left"), (-7, -3, "right"), (0, 8, "center"), (0, -14, "center")]
    places += [
        (dx, dy, "left" if dx > 0 else "right")
        for r in (14, 24, 36, 50)
        for dx, dy in ((9, r), (9, -r - 6), (-9, r), (-9, -r - 6))
    ]
    for x, y, name, colour in sorted(points, key=lambda point: point[1]):
        for number, (dx, dy, side) in enumerate(places):
            text = axis.annotate(
                name, (x, y), xytext=(dx, dy), textcoords="offset points", ha=side, fontsize=7.5, color=colour
            )
            box = text.get_window_extent(renderer)
            free = all(box.x1 < a or box.x0 > c or box.y1 < b or box.y0 > d for a, b, c, d in taken)
            if free or number == len(places) - 1:
                taken.append((box.x0, box.y0, box.x1, box.y1))
                if abs(dy) > 14:
                    axis.annotate(
                        "",
                        (x, y),
                        xytext=(dx, dy + 3),
                        textcoords="offset points",
                        arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "alpha": 0.6},
                    )
                break
            text.remove()
