"""``luthier methods``: every way to change the weights, what it trains and where the result can be served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.methods._describe import Count, Description

_HOW = {"swap": "hot-swapped on its base", "merge": "merged first", "no": "not possible"}
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="Count the parameters trained in this model (smollm2-135m)."),
]


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
        """List the methods: what each trains, of which models, where its result can be served, and the paper."""
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
        from luthier.methods._describe import describe

        told = describe(name)
        counts = _counts(model, name)
        if as_json:
            _print.show_json(_plain(told, counts.get(name)))
            return
        _show(told, counts.get(name), model)


def _counts(model: str | None, name: str | None = None) -> Mapping[str, Count]:
    if model is None:
        return {}
    from luthier.methods._describe import count
    from luthier.store.database import open_store
    from luthier.store.models import find

    store = open_store()
    return count(store, find(store, model), None if name is None else (name,))


def _plain(told: Description, count: Count | None) -> dict[str, Any]:
    from dataclasses import asdict

    found = asdict(told)
    if count is not None:
        found["parameters"] = asdict(count) | {"share": round(count.share, 8)}
    return found


def _list(found: list[Description], counts: Mapping[str, Count], model: str | None) -> None:
    from rich.markup import escape

    from luthier.cli import _print

    rows = []
    for one in found:
        row = [f"[bold]{one.name}[/]", escape(one.summary.partition(": ")[2] or one.summary)]
        if model is not None:
            row += [_number(counts[one.name]), _share(counts[one.name])]
        row += [", ".join(one.architectures), _served(one, "torch"), _served(one, "llamacpp")]
        rows.append((*row, escape(_short(one.paper))))
    columns = ["name", "what is trained", *(["parameters", "share"] if model else []), "models", "torch", "llamacpp"]
    columns.append("paper")
    if _print.out().width < 110:  # a narrow terminal shows what fits; --json and show have the rest
        kept = [n for n, column in enumerate(columns) if column not in ("models", "torch", "llamacpp", "paper")]
        columns, rows = [columns[n] for n in kept], [tuple(row[n] for n in kept) for row in rows]
    _print.show(_print.table(columns, rows, right=["parameters", "share"]))
    if model is None:
        _print.say(
            "how many parameters: luthier methods --model smollm2-135m   one of them in full: luthier methods show lora"
        )
        return
    for one in found:
        if counts[one.name].why_not:
            _print.say(f"{one.name}: {counts[one.name].why_not}")


def _number(count: Count) -> str:
    return "-" if count.why_not else f"{count.trained:,}"


def _share(count: Count) -> str:
    return "" if count.why_not else f"{count.share:.3%}" if count.share < 0.1 else f"{count.share:.1%}"


def _served(one: Description, engine: str) -> str:
    """``swap``, or ``merge (decoder)`` where not every architecture can."""
    ways: dict[str, list[str]] = {}
    for architecture, engines in one.serving.items():
        ways.setdefault(engines.get(engine, "no"), []).append(architecture)
    told = [
        way if len(of) == len(one.serving) else f"{way} ({', '.join(of)})" for way, of in ways.items() if way != "no"
    ]
    return ", ".join(told) or "no"


def _short(paper: str) -> str:
    """``Hu et al. 2022`` of the full citation."""
    import re

    found = re.match(r".*?\b\d{4}\b", paper)
    return found[0] if found else paper


def _show(told: Description, count: Count | None, model: str | None) -> None:
    from rich.markup import escape

    from luthier.cli import _print

    _print.out().print(told.about.replace("``", "`") + "\n", markup=False)
    kept = {"adapter": "an adapter", "delta": "the changed tensors", "weights": "a whole model", "head": "a head"}
    facts = {"models": ", ".join(told.architectures), "keeps": kept.get(told.saves, told.saves), "paper": told.paper}
    for architecture, engines in told.serving.items():
        ways = "; ".join(f"{engine}: {_HOW[way]}" for engine, way in engines.items())
        facts[f"{architecture} served by"] = ways
    for architecture, values in told.train.items():
        facts[f"{architecture} trains with"] = ", ".join(f"{key}={value}" for key, value in values.items())
    if count is not None:
        counted = f"{count.trained:,} of {count.total:,} parameters ({count.share:.3%})"
        facts[f"in {model}"] = count.why_not or counted
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
