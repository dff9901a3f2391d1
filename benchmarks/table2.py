"""Full fine-tuning or LoRA, a small model or a larger one: the design of Table II of a survey, on sets and models of this size.

    python benchmarks/table2.py --data FOLDER [--sets agnews tweet_emotion] [--rows 600] [--test 400] [--epochs 4] [--quick]

The table is in "Navigating the Landscape of Large Language Paradigms and Fine-Tuning Strategies" (F1 of BERT and Flan-T5, fine-tuned in
full or by LoRA, on several classification sets). Here MiniLM-L6 (22M, an encoder) and SmolLM2-135M (a decoder) are tuned both ways on the
same rows, for the same epochs, with the rates that Luthier has as defaults. Every set is a folder of ``train.jsonl`` and ``test.jsonl``
with ``text`` and ``label``. Macro F1 on the same test rows after every epoch gives the curves; the table shows the last epoch, with a
bootstrap interval and whether a paired test tells the two ways apart. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _labelled import check_sets, macro_f1, only_training, read_rows

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SETS = ("agnews", "tweet_emotion", "tweet_sentiment", "chnsenticorp")
MODELS = ("minilm-l6", "smollm2-135m")
WAYS = ("full", "lora")


def answers(model: Any, test: Any, prompt: Any) -> list[str]:
    """The label that the model as it stands gives to every test row."""
    import torch

    from luthier.data.batch import order_by_length
    from luthier.models.score import score_batches
    from luthier.objectives import classify
    from luthier.objectives._rows import Limits

    kept = classify.prepare(test, model, prompt, classify.Config(), Limits(model.context_length, "truncate"))
    best = [0] * len(kept)
    training = model.module.training
    model.module.eval()
    with torch.inference_mode():
        if model.architecture == "encoder":
            for batch in order_by_length([row.length for row in kept], 4096):
                made = classify.collate([kept[i] for i in batch], model)
                for place, row in zip(batch, model.module(made.ids, made.mask).argmax(-1).tolist(), strict=True):
                    best[place] = row
        else:
            scored = classify.collate(kept, model).rows
            for batch in score_batches(model.module, scored, model.device):
                for place, values in batch:
                    best[place] = max(range(len(values)), key=values.__getitem__)
    model.module.train(training)
    return [model.labels[place] for place in best]


def tuned(store: Any, model: str, way: str, train: Any, test: Any, prompt: Any, epochs: int) -> dict[str, Any]:
    """One cell: macro F1 on the test rows after every epoch, the last answers, parameters and seconds."""
    from luthier.training.tune import tune

    wanted = [str(e.target) for e in test.examples]
    curve: list[float] = []
    last: list[list[str]] = []
    spent = [0.0]

    def score(loaded: Any) -> dict[str, float]:
        start = time.perf_counter()
        last.append(answers(loaded, test, prompt))
        curve.append(macro_f1(last[-1], wanted))
        spent[0] += time.perf_counter() - start
        return {"macro_f1": curve[-1]}

    config = {"name": f"{train.name}-{model}-{way}", "model": model, "method": way}
    done = tune(
        {**config, "data": {"overlong": "truncate"}, "train": {"epochs": epochs, "metric": "validation_macro_f1"}},
        splits=only_training(train),
        prompt=prompt,
        scorer=score,
        store=store,
    )
    return {
        "curve": [round(value, 4) for value in curve],
        "answers": last[-1],
        "trainable": done.summary["trainable_parameters"],
        "parameters": done.summary["total_parameters"],
        "seconds": round(float(done.summary["train_s"]) - spent[0], 1),
    }


def compared(first: list[str], second: list[str], wanted: list[str]) -> dict[str, float]:
    """First minus second in macro F1, its 95% interval and p, by paired bootstrap over the test rows."""
    from luthier.core import catalog
    from luthier.evaluation.statistics import paired_bootstrap
    from luthier.scorers._score import Answer, Figure, Target

    entry = catalog.load("scorers", "macro_f1")
    targets = [Target(text) for text in wanted]

    def figure(given: list[str]) -> Figure:
        return Figure(entry, entry.configure(), [Answer(text) for text in given], targets, [None] * len(given))

    found = paired_bootstrap(figure(first), figure(second), len(wanted), resamples=10_000)
    return {"value": found.value, "low": found.low, "high": found.high, "p": found.p}


def measure(folder: Path, sets: list[str], train_rows: int, test_rows: int, epochs: int) -> dict[str, Any]:
    """Every set, model and way."""
    from luthier.core.task import PromptTemplate
    from luthier.models.pull import pull
    from luthier.store.database import Store, open_store
    from luthier.tasks.own import CLASSIFY_INSTRUCTION

    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        store: Store = open_store(home)
        for model in MODELS:
            pull(model, store=store)
        for name in sets:
            train = read_rows(folder / name / "train.jsonl", train_rows)
            test = read_rows(folder / name / "test.jsonl", test_rows)
            prompt = PromptTemplate(CLASSIFY_INSTRUCTION, labels=train.labels)
            figures[name] = {
                "wanted": [str(e.target) for e in test.examples],
                "train": len(train),
                "labels": len(train.labels),
            }
            for model in MODELS:
                for way in WAYS:
                    cell = tuned(store, model, way, train, test, prompt, epochs)
                    figures[name][f"{model} {way}"] = cell
                    print(
                        f"{name:16} {model:13} {way:5} F1 {cell['curve'][-1]:.3f}  {cell['seconds']:.0f} s",
                        file=sys.stderr,
                    )
    return figures


def draw(figures: dict[str, Any], path: Path) -> None:
    """The curves: macro F1 over epochs, one panel a set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(figures), figsize=(3.4 * len(figures), 3.2), sharey=False, squeeze=False)
    colours = {"minilm-l6": "#2b6cb0", "smollm2-135m": "#c05621"}
    for axis, (name, found) in zip(axes[0], figures.items(), strict=True):
        for model in MODELS:
            for way in WAYS:
                curve = found[f"{model} {way}"]["curve"]
                style = "-" if way == "full" else "--"
                axis.plot(
                    range(1, len(curve) + 1),
                    curve,
                    style,
                    color=colours[model],
                    marker="o",
                    ms=3,
                    label=f"{model} {way}",
                )
        axis.set_title(f"{name} ({found['train']} rows)", fontsize=10)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("macro F1, test")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="lower center", ncol=4, frameon=False, fontsize=9)
    fig.tight_layout(rect=(0, 0.1, 1, 1))
    fig.savefig(path, dpi=140)


def table(figures: dict[str, Any]) -> str:
    """The table in Markdown: a line a model and way, a column a set."""
    lines = ["| model | trained | " + " | ".join(figures) + " | mean |", "|---|---|" + "---|" * (len(figures) + 1)]
    for model in MODELS:
        for way in WAYS:
            cells = [found[f"{model} {way}"] for found in figures.values()]
            values = [100 * cell["curve"][-1] for cell in cells]
            trained = f"{cells[0]['trainable'] / 1e6:.1f}M of {cells[0]['parameters'] / 1e6:.1f}M"
            line = [f"{model} {way}", trained, *(f"{v:.1f}" for v in values), f"{sum(values) / len(values):.1f}"]
            lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, what a paired test says, and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with a folder for each set")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--test", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--picture", type=Path, default=Path("table2.png"))
    parser.add_argument(
        "--quick", action="store_true", help="two sets, 160 rows, two epochs: under five minutes on two cores"
    )
    given = parser.parse_args()
    if given.quick:
        given.sets, given.rows, given.test, given.epochs = given.sets[:2], 160, 200, 2
    check_sets(parser, given.data, given.sets)
    figures = measure(given.data, given.sets, given.rows, given.test, given.epochs)
    draw(figures, given.picture)
    print(
        f"Macro F1 x 100 on {given.test} test rows after {given.epochs} epochs over {given.rows} rows\n\n{table(figures)}\n"
    )
    pairs = [(f"{m} full", f"{m} lora") for m in MODELS] + [(f"{MODELS[1]} {w}", f"{MODELS[0]} {w}") for w in WAYS]
    found: dict[str, Any] = {}
    for name, cells in figures.items():
        for first, second in pairs:
            test = compared(cells[first]["answers"], cells[second]["answers"], cells["wanted"])
            found[f"{name}: {first} - {second}"] = {key: round(value, 4) for key, value in test.items()}
            print(
                f"{name:16} {first} - {second}: {100 * test['value']:+.1f} [{100 * test['low']:+.1f}, {100 * test['high']:+.1f}], p {test['p']:.3f}"
            )
    for cells in figures.values():
        del cells["wanted"]
        for cell in cells.values():
            if isinstance(cell, dict):
                del cell["answers"]
    print(json.dumps({"benchmark": "table2", "ratios": {}, "figures": figures, "quality": found}))


if __name__ == "__main__":
    main()
