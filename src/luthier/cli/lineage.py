"""``luthier lineage``: what made a thing, and what it made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.tree import Tree

_COLOURS = {
    "dataset": "cyan",
    "run": "yellow",
    "model": "green",
    "endpoint": "bold green",
    "trace": "magenta",
    "feedback": "blue",
    "task": "cyan",
}


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def lineage(
        name: Annotated[
            str, typer.Argument(help="A model, run, dataset or trace: its name, its id, or the start of the id.")
        ],
        as_json: Annotated[bool, typer.Option("--json", help="Print nodes and edges as JSON.")] = False,
    ) -> None:
        """Show what made a thing, and what it made, down to the answers that it gave."""
        from rich.tree import Tree

        from luthier.cli import _print
        from luthier.store.lineage import lineage as trace_back

        graph = trace_back(name)
        if as_json:
            _print.show_json(graph.as_dict())
            return
        root = graph.tree("ancestors")
        drawn = Tree(_line(root), guide_style="dim")
        for title, tree in (("what made it", root), ("what it made", graph.tree("descendants"))):
            branch = drawn.add(f"[bold]{title}[/]")
            for child in tree["children"]:
                grow(branch, child)
            if title == "what it made" and root["kind"] == "trace":
                _answers(branch, [root["detail"]])
            if not branch.children:
                branch.add("[dim]nothing recorded[/]")
        _print.show(drawn)


def grow(tree: Tree, node: dict[str, Any]) -> None:
    """Add a node of ``Graph.tree`` and what is below it."""
    branch = tree.add(_line(node))
    if node.get("again"):
        branch.add("[dim]shown above[/]")
        return
    _answers(branch, node["detail"].get("latest", []))
    for child in node["children"]:
        grow(branch, child)


def _line(node: dict[str, Any]) -> str:
    """One node: kind, name, and what matters of its detail."""
    from rich.markup import escape

    detail, kind, name = node["detail"], node["kind"], node["label"] or node["id"]
    if kind in ("trace", "feedback") and "count" in detail:
        noun = "answer" if kind == "trace" else "statement"
        name = f"{detail['count']:,} {noun}{'' if detail['count'] == 1 else 's'}"
        said = (
            [f"last {len(detail['latest'])} shown"]
            if len(detail.get("latest", ())) < detail["count"] and kind == "trace"
            else []
        )
        said += [f"{detail['up']} good, {detail['down']} bad"] if "up" in detail else []
    elif kind == "run":
        name = detail.get("name") or node["id"]
        said = [detail.get("kind", ""), detail.get("status", ""), node["id"], detail.get("created_at", "")[:16]]
    elif kind == "feedback":
        said = [_statement(detail)]
    elif kind == "trace":
        said = [detail.get("created_at", "")[:19]]
    else:
        keys = ("kind", "method", "objective", "format", "source")
        said = [str(detail[key]) for key in keys if detail.get(key) and detail[key] != kind]
        said += [detail["digest"][:12]] if detail.get("digest") else []
        said += [node["id"][:12]] if node["label"] and node["label"] != node["id"] else []
    relation = f"[dim]{escape(node['relation'])}:[/] " if node["relation"] else ""
    short = name[:12] if kind == "dataset" and len(name) == 64 else name
    rest = escape(" · ".join(part for part in said if part))
    return f"{relation}[dim]{kind}[/] [{_COLOURS.get(kind, 'white')}]{escape(short)}[/]" + (
        f"  [dim]{rest}[/]" if rest else ""
    )


def _answers(tree: Tree, answers: list[dict[str, Any]]) -> None:
    """Question and answer of each trace, with what people said of it."""
    from rich.markup import escape

    for each in answers:
        if "question" not in each:
            continue
        said = "; ".join(_statement(one) for one in each["feedback"])
        line = f"[dim]{each['created_at'][:19]}[/] {escape(each['question'])} [dim]->[/] {escape(each['answer'])}"
        tree.add(line + (f"  [blue]({escape(said)})[/]" if said else "") + f"  [dim]{each['id']}[/]")


def _statement(said: dict[str, Any]) -> str:
    words = {1: "good", -1: "bad"}.get(said.get("rating", 0), "")
    better = f"better than {said['over']}" if said.get("over") else ""
    parts = [
        words,
        better,
        said.get("event", ""),
        *(f"{key}: {said[key]}" for key in ("label", "corrected", "comment") if said.get(key)),
    ]
    return ", ".join(part for part in parts if part)
