"""``luthier compare RUN RUN``: is one evaluation better than another on the same examples?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.evaluation.compare import RunComparison


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare)


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help="An evaluation: id, start of the id, or name.")],
    second: Annotated[str, typer.Argument(metavar="RUN", help="Another one of the same examples.")],
    *,
    scorer: Annotated[str | None, typer.Option(help="Which score; left out, the primary one.")] = None,
    show: Annotated[int, typer.Option(min=0, help="How many changed examples to list.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two evaluations of the same examples: difference, interval, three tests, and the examples that changed."""
    from luthier.cli import _print
    from luthier.evaluation.compare import compare as run

    found = run(first, second, scorer=scorer)
    if as_json:
        _print.show_json(found.as_dict())
    else:
        _show(found, show)


def _show(found: RunComparison, most: int) -> None:
    from rich.markup import escape

    from luthier.cli import _print
    from luthier.evaluation.compare import changed
    from luthier.tournament import figures

    lower = ", lower is better" if found.lower_is_better else ""
    title = f"{figures.metric(found.scorer)} on the same {found.examples:,} examples{lower}"
    rows = [
        (escape(found.models[0]), f"{found.values[0]:.3f}", found.first),
        (escape(found.models[1]), f"{found.values[1]:.3f}", found.second),
        (
            "[bold]difference[/]",
            f"[bold]{figures.signed(found.difference)}[/]",
            rf"\[{found.low:+.3f}, {found.high:+.3f}] (95%)",
        ),
    ]
    _print.show(
        _print.table(["", figures.metric(found.scorer), ""], rows, title=title, right=[figures.metric(found.scorer)])
    )
    tests = [
        ("paired bootstrap", found.bootstrap_p),
        ("permutation", found.permutation_p),
        ("McNemar, exact", found.mcnemar_p),
    ]
    _print.show(" · ".join(f"{name}: {figures.probability(p)}" for name, p in tests if p is not None))
    _print.show(f"better in {len(found.only_first):,} examples, worse in {len(found.only_second):,}")
    pairs = changed(found)
    for one, other in pairs[:most]:
        _print.show(f"\n{escape(one.input)}")
        _print.show(
            f"  [dim]target[/] {escape(one.target)}  [dim]first[/] {escape(one.answer)}  [dim]second[/] {escape(other.answer)}"
        )
    if len(pairs) > most:
        _print.show(f"[dim]{len(pairs) - most:,} more: --show {len(pairs)}[/]")
