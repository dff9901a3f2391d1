"""The import order of the layout is law: a file imports its own folder and folders above it, never below."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "luthier"
LAYERS = (
    "core", "store", "data", "models", "methods", "objectives", "training", "engines", "strategies", "scorers", "tasks",
    "evaluation", "knowledge", "apps", "tournament", "gateway", "console", "scale", "cli",
)  # fmt: skip
CATALOGUES = {"methods", "objectives", "engines", "strategies", "scorers", "tasks"}
WITHIN = {
    "training": ("optimizers",), "gateway": ("guardrails", "routing"),
    "knowledge": ("parsers", "chunkers", "indexes", "retrievers", "answers"),
}  # fmt: skip
"""Catalogues inside of another folder."""
FILES = sorted(SOURCE.rglob("*.py"))
WITHOUT_TORCH = {"core", "store", "scorers", "tasks", "cli"}
HEAVY = {"torch", "transformers", "peft", "accelerate", "sklearn", "matplotlib", "pyarrow"}
BANNED_WORDS = re.compile(r"(?:^|_)(?:utils?|common|misc|helpers?)(?:_|$)")
BANNED_CLASSES = re.compile(r"^Base[A-Z]|Manager$|Mixin$")


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    """Every luthier module that a file imports, wherever in it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the order"
            found.append((node.lineno, node.module or ""))
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def violations(path: Path, tree: ast.AST) -> list[str]:
    """What breaks the order in one file."""
    parts = path.relative_to(SOURCE).parts
    if len(parts) == 1:
        return []
    own, out = parts[0], []
    for line, module in imported(tree):
        names = module.split(".")
        if names[0] != "luthier" or len(names) < 2 or names[1] not in LAYERS:
            continue
        if LAYERS.index(names[1]) > LAYERS.index(own):
            out.append(f"{own} imports {names[1]} (line {line}: {module})")
        folder = (own,) if own in CATALOGUES else (own, parts[1]) if parts[1] in WITHIN.get(own, ()) else ()
        entry = names[len(folder) + 1] if folder and len(names) > len(folder) + 1 else ""
        if tuple(names[1 : len(folder) + 1]) == folder and entry and not entry.startswith("_") and entry != path.stem:
            out.append(f"catalogue entry imports another entry (line {line}: {module})")
    return out


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_import_order(path: Path) -> None:
    assert violations(path, ast.parse(path.read_text(encoding="utf-8"))) == []


def test_the_check_itself_finds_violations() -> None:
    low = SOURCE / "core" / "x.py"
    assert violations(low, ast.parse("from luthier.store.home import home"))
    assert violations(low, ast.parse("def f():\n    import luthier.cli"))
    assert violations(SOURCE / "methods" / "x.py", ast.parse("from luthier.methods.lora import build"))
    assert not violations(SOURCE / "methods" / "x.py", ast.parse("from luthier.methods._peft import build"))
    rule = SOURCE / "training" / "optimizers" / "x.py"
    assert violations(rule, ast.parse("from luthier.training.optimizers.adamw import build"))
    assert not violations(rule, ast.parse("from luthier.training.optimizers._torch import adamw"))
    route = SOURCE / "gateway" / "routing" / "x.py"
    assert violations(route, ast.parse("from luthier.gateway.routing.weighted import build"))
    assert not violations(route, ast.parse("from luthier.gateway.routing._rule import Rule"))
    assert not violations(SOURCE / "training" / "x.py", ast.parse("from luthier.training.loop import train"))


def test_every_folder_is_in_the_order() -> None:
    folders = {p.parent.relative_to(SOURCE).parts[0] for p in FILES if p.parent != SOURCE}
    assert folders <= set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_light_folders_import_nothing_heavy_at_the_top(path: Path) -> None:
    parts = path.relative_to(SOURCE).parts
    if len(parts) > 1 and parts[0] not in WITHOUT_TORCH:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    assert [m for _, m in imported(top) if m.split(".")[0] in HEAVY] == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_names(path: Path) -> None:
    assert not BANNED_WORDS.search(path.stem), f"{path.stem} says nothing"
    classes = [n.name for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ClassDef)]
    assert [c for c in classes if BANNED_CLASSES.search(c)] == []


def test_no_pickle_and_no_remote_code() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) pickle\b", text, re.M), path
        assert not re.search(r"trust_remote_code\s*=\s*True", text), path
        for match in re.finditer(r"torch\.load\((.*)", text):
            assert "weights_only=True" in match.group(1), path
