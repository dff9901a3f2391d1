"""``luthier power``: how small a difference a test set shows, and how many examples a wished one needs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.core.run import Run
    from luthier.evaluation.power import Design
    from luthier.evaluation.records import Record
    from luthier.store.database import Store


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("power")(power)


def power(
    *,
    n: Annotated[int | None, typer.Option("--n", min=1, help="What do this many test examples show?")] = None,
    difference: Annotated[
        float | None, typer.Option(help="How many examples show this difference, for example 0.03?")
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="RUN", help="What does an evaluation show? Twice: of two on the same examples."),
    ] = None,
    discordance: Annotated[
        float | None, typer.Option(help="Share of examples on which exactly one of two systems is right.")
    ] = None,
    accuracy: Annotated[float | None, typer.Option(help="About how good the systems are.")] = None,
    entrants: Annotated[int, typer.Option(min=2, help="How many systems are compared, each with each.")] = 2,
    wanted: Annotated[float, typer.Option("--power", help="Probability of finding a difference that is there.")] = 0.8,
    level: Annotated[float, typer.Option(help="Probability of finding one that is not there.")] = 0.05,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a test set can tell apart before you measure, or whether "no difference" meant "too few examples"."""
    from luthier.cli import _print
    from luthier.core.errors import InputError
    from luthier.evaluation.power import Design

    given = [name for name, value in (("--n", n), ("--difference", difference), ("--run", run)) if value]
    if len(given) != 1:
        raise InputError(
            f"give one of --n, --difference and --run; got {' and '.join(given) or 'none'}",
            hint="luthier power --n 280   or   luthier power --difference 0.03",
        )
    design = Design(wanted, level, entrants * (entrants - 1) // 2)
    if run:
        found = _of_runs(run, design)
    elif n is not None:
        found = _of_examples(n, discordance, accuracy, design)
    else:
        assert difference is not None
        found = _of_difference(difference, discordance, accuracy, design)
    if as_json:
        _print.show_json(found)
    else:
        _show(found, design)


def _of_examples(n: int, discordance: float | None, accuracy: float | None, design: Design) -> dict[str, Any]:
    from luthier.evaluation import power

    return {
        "examples": n,
        "paired": [
            {"discordance": d, "difference": power.paired_difference(n, d, design)}
            for d in ([discordance] if discordance is not None else power.DISCORDANCES)
        ],
        "unpaired": [
            {"accuracy": a, "difference": power.unpaired_difference(n, a, design)}
            for a in ([accuracy] if accuracy is not None else power.ACCURACIES)
        ],
        "one_score": [
            {"accuracy": a, "margin": power.margin_of(n, accuracy=a)}
            for a in ([accuracy] if accuracy is not None else power.ACCURACIES)
        ],
    }


def _of_difference(
    difference: float, discordance: float | None, accuracy: float | None, design: Design
) -> dict[str, Any]:
    from luthier.evaluation import power

    shares = [discordance] if discordance is not None else [d for d in power.DISCORDANCES if d >= difference]
    good = [accuracy] if accuracy is not None else [a for a in power.ACCURACIES if a > difference]
    return {
        "difference": difference,
        "paired": [
            {"discordance": d, "examples": power.paired_examples(difference, d, design)} for d in shares or [difference]
        ],
        "unpaired": [{"accuracy": a, "examples": power.unpaired_examples(difference, a, design)} for a in good],
        "one_score": [
            {"accuracy": a, "examples": power.examples_for_margin(difference, accuracy=a)} for a in good or [0.5]
        ],
    }


def _of_runs(names: list[str], design: Design) -> dict[str, Any]:
    from luthier.core.errors import InputError
    from luthier.evaluation.records import find, load_records
    from luthier.store.database import open_store

    if len(names) > 2:
        raise InputError(f"--run is given once or twice; got {len(names)}")
    store = open_store()
    runs = [find(store, name) for name in names]
    records = [load_records(store, one) for one in runs]
    primary = _primary(runs, records)
    if len(runs) == 1:
        return {"run": runs[0].id, "scorer": primary} | _of_one(store, runs[0], records[0], primary, design)
    return {"runs": [one.id for one in runs], "scorer": primary} | _of_two(store, runs, records, primary, design)


def _primary(runs: list[Run], records: list[list[Record]]) -> str:
    from luthier.core.errors import InputError

    names = [str(one.summary.get("primary") or "") for one in runs]
    if "" in names or not all(records):
        raise InputError(f"run {runs[names.index('') if '' in names else 0].id} is not finished: it has no score yet")
    if len(set(names)) > 1:
        raise InputError(f"the two runs are scored by {names[0]} and {names[1]}: they cannot be compared")
    return names[0]


def _of_one(store: Store, run: Run, records: list[Record], primary: str, design: Design) -> dict[str, Any]:
    from luthier.evaluation import power

    score = run.summary["scores"][primary]
    right = sum(r.scores.get(primary, 0.0) for r in records) / len(records)
    known = min(max(right, 0.01), 0.99)
    return (
        {"score": score}
        | _of_examples(len(records), None, known, design)
        | {
            "paired": [
                {"discordance": d, "difference": power.paired_difference(len(records), d, design)}
                for d in power.DISCORDANCES
            ]
        }
    )


def _of_two(store: Store, runs: list[Run], records: list[list[Record]], primary: str, design: Design) -> dict[str, Any]:
    """From the paired bootstrap of the two runs' figures, whatever the scorer."""
    from luthier.evaluation.compare import require_same_examples, scorers_of_run
    from luthier.evaluation.power import from_differences, from_error
    from luthier.evaluation.result import statistic_of
    from luthier.evaluation.statistics import RESAMPLES, bootstrap

    one, other = records
    require_same_examples(runs, records)
    scorer = scorers_of_run(store, runs[0])[primary]
    figures = [statistic_of(scorer, each) for each in records]
    drawn = bootstrap(figures, len(one), RESAMPLES)
    gaps = [a.scores.get(primary, 0.0) - b.scores.get(primary, 0.0) for a, b in zip(one, other, strict=True)]
    observed = from_error(
        figures[0].value - figures[1].value,
        float((drawn[0] - drawn[1]).std()),
        len(one),
        design,
        discordance=from_differences(gaps, design).discordance,
    )
    return observed.as_dict()


def _show(found: dict[str, Any], design: Design) -> None:
    from luthier.cli import _print

    pairs = f", {design.comparisons} pairs compared (Holm)" if design.comparisons > 1 else ""
    told = f"[dim]two-sided level {design.level:g}, power {design.power:.0%}{pairs}[/]"
    if "detectable" in found:
        _show_observed(found)
    elif "difference" in found:
        _show_wish(found)
    else:
        _show_reach(found)
    _print.show(told)


def _show_observed(found: dict[str, Any]) -> None:
    from luthier.cli import _print

    gap, reach = found["difference"], found["detectable"]
    discordance = found["discordance"]
    _print.show(
        f"On {found['examples']:,} examples the two differ by {gap:+.3f} ± {found['error']:.3f} ({found['scorer']})"
        + ("" if discordance is None else f"; exactly one is right on {discordance:.1%} of them")
    )
    _print.show(f"The smallest difference that these examples would usually show: [bold]{reach:.3f}[/]")
    if abs(gap) < reach and found["examples_needed"]:
        _print.show(f"A true difference of {abs(gap):.3f} needs about [bold]{found['examples_needed']:,}[/] examples")


def _show_wish(found: dict[str, Any]) -> None:
    from luthier.cli import _print

    rows = [
        ("two systems, the same examples", f"{p['discordance']:.0%} discordant", p["examples"]) for p in found["paired"]
    ]
    rows += [
        ("two systems, different examples (each)", f"accuracy {p['accuracy']:.0%}", p["examples"])
        for p in found["unpaired"]
    ]
    rows += [
        ("one score, interval of ± the difference", f"accuracy {p['accuracy']:.0%}", p["examples"])
        for p in found["one_score"]
    ]
    title = f"Examples that show a difference of {found['difference']:g}"
    shown = [(what, how, f"{count:,}") for what, how, count in rows]
    _print.show(_print.table(["comparison", "if", "examples"], shown, title=title, right=["examples"]))


def _show_reach(found: dict[str, Any]) -> None:
    from luthier.cli import _print

    def told(value: float) -> str:
        return "none" if math.isnan(value) else f"{value:.3f}"

    rows = [
        ("two systems, the same examples", f"{p['discordance']:.0%} discordant", told(p["difference"]))
        for p in found["paired"]
    ]
    rows += [
        ("two systems, different examples (each)", f"accuracy {p['accuracy']:.0%}", told(p["difference"]))
        for p in found["unpaired"]
    ]
    rows += [
        ("one score, reach of its interval (±)", f"accuracy {p['accuracy']:.0%}", told(p["margin"]))
        for p in found["one_score"]
    ]
    title = f"The smallest difference that {found['examples']:,} examples show"
    _print.show(_print.table(["comparison", "if", "difference"], rows, title=title, right=["difference"]))
