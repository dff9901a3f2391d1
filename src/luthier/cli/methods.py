"""``luthier methods``: every way to change the weights, what it trains and where the result can be served."""

from __future__ import annotations

import re
from collections.abc import Mapping
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.methods._describe import Count, Description

_HOW = {"swap": "hot-swapped on its base", "merge": "merged first", "no": "not possible"}
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="Count parameters and memory in this stored model."),
]
_DEFAULT, _ENCODER = "smollm2-135m", "minilm-l6"
_WIDE, _LONGEST, _NARROW_PAPER = 150, 50, 21


def register(app: typer.Typer) -> None:
    """Add the commands."""
    methods = typer.Typer(
        help="Ways to change the weights: list them, or show one with its options.", invoke_without_command=True
    )
    app.add_typer(methods, name="methods")

    @methods.callback()
    def list_all(
        context: typer.Context,
        model: Model = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """List the methods: parameters, memory and speed of training, where the result can be served, and the paper."""
        if context.invoked_subcommand is not None:
            return
        from luthier.cli import _print
        from luthier.core import catalog
        from luthier.methods._describe import describe

        found = [describe(name) for name in catalog.names("methods")]
        counts = _counts(model)
        if as_json:
            _print.show_json([_plain(one, counts.get(one.name)) for one in found])
            return
        _list(found, counts, model)

    @methods.command()
    def show(
        name: Annotated[str, typer.Argument(help="A method, for example lora.")],
        model: Model = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Show a method: what it does, where it can be served, its options with defaults and meaning."""
        from luthier.cli import _print
        from luthier.methods._describe import describe, figures

        told = describe(name)
        counts = {model: _counts(model, name)[name]} if model else dict(figures().get(name, {}))
        if as_json:
            _print.show_json(_plain(told, counts.get(model or _DEFAULT)))
            return
        _show(told, counts)


def _counts(model: str | None, name: str | None = None) -> Mapping[str, Count]:
    """What each method costs: in the stored ``model``, else in the decoder that comes with Luthier, or in its encoder where it goes into that alone."""
    from luthier.methods._describe import count, figures

    if model is None:
        known = {method: rows[_DEFAULT] for method, rows in figures().items() if _DEFAULT in rows}
        encoders = {method: rows[_ENCODER] for method, rows in figures().items() if _only_encoder(rows)}
        return known | encoders
    from dataclasses import replace

    from luthier.models.load import choose_dtype
    from luthier.store.database import open_store
    from luthier.store.models import find
    from luthier.training.preflight import training_mb

    store = open_store()
    record = find(store, model)
    dtype = choose_dtype("auto")
    names = None if name is None else (name,)
    counts = count(store, record, names, lambda built: training_mb(replace(built, dtype=dtype)))
    like = {"decoder": _DEFAULT, "encoder": _ENCODER}.get(record.architecture, "")  # no encoder-decoder was measured
    speeds = {method: rows[like].speed for method, rows in figures().items() if like in rows}
    return {method: replace(one, speed=speeds.get(method)) for method, one in counts.items()}


def _only_encoder(rows: Mapping[str, Count]) -> bool:
    return _ENCODER in rows and not rows[_ENCODER].why_not and bool(rows.get(_DEFAULT, rows[_ENCODER]).why_not)


def _plain(told: Description, count: Count | None) -> dict[str, Any]:
    from dataclasses import asdict

    found = asdict(told)
    if count is not None:
        found["parameters"] = asdict(count) | {"share": round(count.share, 8)}
    return found


def _list(found: list[Description], counts: Mapping[str, Count], model: str | None) -> None:
    from luthier.cli import _print
    from luthier.methods._describe import FAMILIES, Count, figures, measured_on

    wide = _print.out().width >= _WIDE
    architecture = _architecture(model)
    small = set() if model else {method for method, rows in figures().items() if _only_encoder(rows)}
    rows: list[tuple[str, ...]] = []
    for name, family in FAMILIES.items():
        of = [one for one in found if one.family == name]
        if of:
            rows.append((f"[bold]{family.title}[/]", *[""] * (7 if wide else 6)))
            rows += [
                _row(one, counts.get(one.name, Count(why_not="")), one.name in small, wide, architecture) for one in of
            ]
    right = ["parameters", "memory", "speed"]
    columns = ["method", *right, "torch", "llama.cpp", "paper", *(["what is trained"] if wide else [])]
    _print.show(_print.table(columns, rows, right=right))
    where = model or f"{_DEFAULT} (* in {_ENCODER}, for encoders alone)"
    speed = (
        f"; speed of training over that of lora, on {measured_on()}"
        if any(one.speed for one in counts.values())
        else ""
    )
    _print.say(f"parameters trained and memory of training in {where}{speed}")
    _print.say("torch, llama.cpp: how each serves the result. One method in full: luthier methods show lora")
    for one in found:
        if one.name in counts and counts[one.name].why_not:
            _print.say(f"{one.name}: {counts[one.name].why_not}")


def _architecture(model: str | None) -> str:
    """What the stored model is; a decoder when none is named."""
    from luthier.store.database import open_store
    from luthier.store.models import find

    return "decoder" if model is None else find(open_store(), model).architecture


def _row(one: Description, count: Count, other: bool, wide: bool, architecture: str) -> tuple[str, ...]:
    from rich.markup import escape

    ways = list(one.serving.values())
    served = one.serving.get(architecture) or (ways[0] if architecture == "decoder" else {})
    row = [f"  {one.name}", _number(count) + ("*" if other else ""), _memory(count), _speed(count)]
    row += [served.get("torch", ""), served.get("llamacpp", "")]
    paper = short_paper(one.paper)
    row.append(escape(paper if wide or len(paper) <= _NARROW_PAPER else paper.replace(" et al.", "")))
    if wide:
        first = (one.summary.partition(": ")[2] or one.summary).partition(";")[0].removesuffix(".")
        row.append(escape(shorten(first, _LONGEST, placeholder=" …")))
    return tuple(row)


def _memory(count: Count) -> str:
    return "" if count.memory_mb is None else f"{count.memory_mb / 1000:.2f} GB"


def _speed(count: Count) -> str:
    return "" if count.speed is None else f"{count.speed:.2f}x"


def _number(count: Count) -> str:
    return "-" if count.why_not else f"{count.trained:,}" if count.trained else ""


def short_paper(paper: str) -> str:
    """``Hu et al. 2022`` of the full citation."""
    found = re.match(r"(.*?\b\d{4})\b", paper)
    return re.sub(r", .* and .*(?= \d)", " et al.", found[1]) if found else paper


def _show(told: Description, counts: Mapping[str, Count]) -> None:
    from rich.markup import escape

    from luthier.cli import _print
    from luthier.methods._describe import FAMILIES

    about = re.sub(
        r"(?<!\n)\n(?![\n\s*-])", " ", told.about.replace("``", "`")
    )  # paragraphs fold where the terminal ends
    _print.out().print(about + "\n", markup=False)
    kept = {"adapter": "an adapter", "delta": "the changed tensors", "weights": "a whole model", "head": "a head"}
    facts = {
        "family": FAMILIES[told.family].title,
        "models": ", ".join(told.architectures),
        "keeps": kept.get(told.saves, told.saves),
        "paper": told.paper,
    }
    for architecture, engines in told.serving.items():
        ways = "; ".join(f"{engine}: {_HOW[way]}" for engine, way in engines.items())
        facts[f"{architecture} served by"] = ways
    for architecture, values in told.train.items():
        facts[f"{architecture} trains with"] = ", ".join(f"{key}={value}" for key, value in values.items())
    for model, count in counts.items():
        parts = [f"trains {count.trained:,} of {count.total:,} parameters ({count.share:.3%})"]
        parts += [f"in {count.memory_mb / 1000:.2f} GB"] if count.memory_mb is not None else []
        parts += [f"at {count.speed:.2f} times the speed of lora"] if count.speed is not None else []
        facts[f"in {model}"] = count.why_not or ", ".join(parts)
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        if value:
            _print.show(f"[bold]{key:<{width}}[/]  {escape(value)}")
    if not told.options:
        _print.show("\nno options")
        return
    rows = [
        (f"[bold]{one.key}[/]", escape(one.type), escape(_default(one.default)), escape(one.meaning))
        for one in told.options
    ]
    _print.show("")
    _print.show(_print.table(["option", "type", "default", "meaning"], rows))


def _default(value: object) -> str:
    if value is None or value in ("", (), [], {}):
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
