"""``luthier adapters``: what tuning made, looked into, renamed, merged and combined."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.models.inspect_adapter import Inspection, Part

_SHADES = " ░▒▓█"
_WEIGHTS = "--weights must be numbers with commas between them, such as 0.7,0.3"
_As = Annotated[str | None, typer.Option("--as", metavar="NAME", help="The new model's name.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Name = Annotated[str, typer.Argument(help="A tuned model.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    adapters = typer.Typer(
        help="What tuning made: list, inspect, rename, merge into a base and back, combine. To other layouts: luthier export NAME --format "
        "peft; from them: luthier pull file:FOLDER --base NAME.",
        invoke_without_command=True,
    )
    app.add_typer(adapters, name="adapters")
    _register_looking(adapters)
    _register_making(adapters)
    _register_merging(adapters)
    _register_stacking(adapters)


def _register_looking(adapters: typer.Typer) -> None:
    @adapters.callback()
    def list_all(
        context: typer.Context,
        base: Annotated[str | None, typer.Option(metavar="NAME", help="Only those of this base.")] = None,
        as_json: _Json = False,
    ) -> None:
        """List what tuning made: method, base, parameters, size, and where it can be served."""
        if context.invoked_subcommand is None:
            _list(base, as_json)

    @adapters.command()
    def inspect(
        name: _Name,
        picture: Annotated[
            Path | None, typer.Option(metavar="FILE.png", help="Write the picture of the updates there.")
        ] = None,
        as_json: _Json = False,
    ) -> None:
        """Show which modules were trained, with how many parameters, and how far each weight moved from the base's."""
        from luthier.cli import _print
        from luthier.models.inspect_adapter import draw, inspect_adapter
        from luthier.store.database import open_store

        found = inspect_adapter(open_store(), name)
        if picture is not None:
            draw(found, picture)
            _print.say(f"picture: {picture}")
        if as_json:
            _print.show_json(found.as_dict())
            return
        _show(found)


def _register_making(adapters: typer.Typer) -> None:
    @adapters.command()
    def rename(name: _Name, new: Annotated[str, typer.Argument(help="The name that it gets.")]) -> None:
        """Give a tuned model another name, everywhere that it is known: lineage, traces, what is built on it."""
        from luthier.cli import _print
        from luthier.models.inspect_adapter import tuned_record
        from luthier.store import models as stored
        from luthier.store.database import open_store

        store = open_store()
        tuned_record(store, name)
        stored.rename(store, name, new)
        _print.say(f"{name} is now {new}")

    @adapters.command()
    def combine(
        names: Annotated[list[str], typer.Argument(help="LoRA (or IA3) adapters of one base, two or more.")],
        new: Annotated[str, typer.Option("--as", metavar="NAME", help="The new adapter's name.")],
        weights: Annotated[
            str | None, typer.Option(metavar="W,W,...", help="One weight an adapter; left out, their mean.")
        ] = None,
        how: Annotated[str, typer.Option(help="cat: exact, ranks of LoRA add up. svd: cut to --rank.")] = "cat",
        rank: Annotated[int | None, typer.Option(help="Rank of an svd; left out, the largest of theirs.")] = None,
        as_json: _Json = False,
    ) -> None:
        """Make one adapter that is the weighted sum of several."""
        from dataclasses import asdict

        from luthier.cli import _print
        from luthier.cli._options import numbers
        from luthier.models.combine import combine as run
        from luthier.store.database import open_store

        given = None if weights is None else numbers(weights, float, _WEIGHTS)
        with _print.progress() as progress:
            made = run(open_store(), names, new, weights=given, how=how, rank=rank, progress=progress)  # type: ignore[arg-type]
        if as_json:
            _print.show_json(asdict(made))
            return
        said = made.meta["combined"]
        parts = " + ".join(f"{weight:g} {name}" for weight, name in zip(said["weights"], said["names"], strict=True))
        way = f"{said['how']}, rank {said['rank']}" if said["rank"] else said["how"]
        _print.say(f"{made.name} = {parts}   ({way}, {_print.size(made.size_bytes)})")


def _register_stacking(adapters: typer.Typer) -> None:
    @adapters.command(name="swap-language")
    def swap_language(
        name: Annotated[str, typer.Argument(help="A task's adapter, trained on top of a language's.")],
        language: Annotated[str, typer.Argument(help="The language adapter to put under it instead.")],
        new: Annotated[str, typer.Option("--as", metavar="NAME", help="The new model's name.")],
        as_json: _Json = False,
    ) -> None:
        """Put what a task learned on top of one language's adapter on another's: the task in a language it was not trained in."""
        from dataclasses import asdict

        from luthier.cli import _print
        from luthier.models.parts import swap
        from luthier.store.database import open_store

        made = swap(open_store(), name, language, new)
        if as_json:
            _print.show_json(asdict(made))
            return
        _print.say(f"{made.name} = {name} on {language}   ({_print.size(made.size_bytes)})")


def _register_merging(adapters: typer.Typer) -> None:
    @adapters.command()
    def merge(name: _Name, new: _As = None, as_json: _Json = False) -> None:
        """Fold a tuned model into its base: a base model of its own, to be tuned, evaluated, exported like any other."""
        from dataclasses import asdict

        from luthier.cli import _print
        from luthier.models.combine import merge_into_base
        from luthier.store.database import open_store

        with _print.progress() as progress:
            made = merge_into_base(open_store(), name, new, progress=progress)
        if as_json:
            _print.show_json(asdict(made))
            return
        _print.say(f"{made.name}: base {made.architecture}, {_print.size(made.size_bytes)}, {name} folded in")
        if made.architecture == "encoder":
            _print.say(f"the classification head stays with {name}: a base has none")

    @adapters.command()
    def unmerge(
        name: Annotated[str, typer.Argument(help="A base that luthier adapters merge made.")], as_json: _Json = False
    ) -> None:
        """Say which base and which adapter a merged base was made of, and check that they still give its weights."""
        from dataclasses import asdict

        from luthier.cli import _print
        from luthier.models.merge import unmerge as run
        from luthier.store.database import open_store

        found = run(open_store(), name)
        if as_json:
            _print.show_json(asdict(found))
            return
        _print.say(f"{name} = {found.base.name} + {found.adapter.name}")
        if found.difference:
            _print.warn(f"folded in again they give other weights: the largest difference is {found.difference:.3g}")
            return
        _print.say(f"bit for bit: nothing is lost with its {_print.size(found.merged.size_bytes)}")
        _print.say(f"next: luthier chat {found.adapter.name}  or  luthier models --remove {name}")


def _list(base: str | None, as_json: bool) -> None:
    from dataclasses import asdict

    from luthier.cli import _print
    from luthier.store import models as stored
    from luthier.store.database import open_store

    store = open_store()
    if base is not None:
        stored.find(store, base)
    records = [record for record in stored.list_models(store, "adapter") if base in (None, record.base)]
    if as_json:
        _print.show_json([asdict(record) for record in records])
        return
    if not records:
        of = f" on {base}" if base else ""
        _print.say(f"nothing was tuned{of} yet; begin with: luthier tune RUN.yaml")
        return
    rows = []
    for record in records:
        count = record.meta.get("trainable_parameters")
        serving = ", ".join(
            f"{engine} {way}" for engine, way in (record.meta.get("serving") or {}).items() if way != "no"
        )
        rows.append(
            (
                f"[bold]{record.name}[/]",
                record.meta.get("method", ""),
                record.base or "",
                f"{count:,}" if count else "",
                _print.size(record.size_bytes),
                serving,
                record.created_at[:10],
            )
        )
    columns = ["name", "method", "base", "parameters", "size", "served by", "created"]
    fit = len(columns) if _print.out().width >= 110 else -2
    _print.show(_print.table(columns[:fit], [row[:fit] for row in rows], right=["parameters", "size"]))


def _show(found: Inspection) -> None:
    from rich.markup import escape

    from luthier.cli import _print

    facts = {
        "method": found.method,
        "base": found.base,
        "keeps": found.saves,
        "parameters": f"{found.parameters:,} in {len(found.parts)} modules"
        + (f", {found.head:,} of them in the head" if found.head else ""),
        "size": _print.size(found.size_bytes),
    }
    _print.show(f"[bold]{escape(found.name)}[/]")
    for key, value in facts.items():
        _print.show(f"[bold]{key:<10}[/]  {escape(value)}")
    if found.grid()[0]:
        _show_grid(found)
    rest = [part for part in found.parts if part.block is None or found.of(part) is None]
    if rest:
        columns = ["module", "parameters", "rank", "norm", "of the weight"]
        _print.show(_print.table(columns, [_row(part) for part in rest], right=columns[1:]))


def _row(part: Part) -> tuple[str, ...]:
    from rich.markup import escape

    told = ("", "") if part.norm is None else (f"{part.norm:.4g}", "")
    if part.update is not None:
        told = (f"{part.update:.4g}", f"{part.relative or 0.0:.3%}")
    return (escape(part.name), f"{part.parameters:,}", str(part.rank or ""), *told)


def _show_grid(found: Inspection) -> None:
    """Blocks down, kinds of modules across; a cell is the update in percent of the weight (or the norm of what was trained), shaded by
    its share of the largest."""
    from luthier.cli import _print
    from luthier.models.inspect_adapter import short_kinds

    blocks, kinds, values = found.grid()
    most, moved = max(values.values()) or 1.0, found.measure == "update"
    rows = []
    for block in blocks:
        row = [str(block)]
        for kind in kinds:
            value = values.get((block, kind))
            shade = _SHADES[min(round(4 * (value or 0.0) / most), 4)]
            told = f"{100 * (value or 0.0):.2f}" if moved else f"{value or 0.0:.4g}"
            row.append("" if value is None else f"{told} {shade * 2}")
        rows.append(row)
    _print.show("\nhow far each weight moved, % of its norm:" if moved else "\nnorm of what was trained:")
    columns = [found.along, *short_kinds(kinds)]
    _print.show(_print.table(columns, rows, right=columns))
