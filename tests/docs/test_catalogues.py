"""The pages that the code writes: every entry and option is there, and a table that fell behind stops the build."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
from mkdocs.exceptions import PluginError
from pydantic import BaseModel, Field

from luthier.core import catalog
from luthier.methods._describe import FAMILIES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_catalogues", DOCS / "catalogues.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Sample(BaseModel):
    rank: int = Field(8, ge=1, lt=9)
    kind: Literal["a", "b"]
    names: list[str] | None = None
    deep: dict[str, str] = Field(default_factory=dict)
    on: bool = True


@pytest.mark.parametrize("catalogue", sorted(catalog.FUNCTIONS))
def test_every_entry_and_option_is_on_its_page(hook: ModuleType, catalogue: str) -> None:
    page = hook.catalogue_page(catalogue)
    for name in catalog.names(catalogue):
        heading = "###" if catalogue == "methods" else "##"
        section = re.split(r"^##+ ", page.partition(f"\n{heading} {name}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
        assert section.strip(), name
        for option in catalog.load(catalogue, name).config_class.model_fields:
            assert f"| `{option}` |" in section
    assert "``" not in page.replace("```", "")


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("rank", "whole number, ≥ 1, < 9", "`8`"),
        ("kind", "`a` \\| `b`", "required"),
        ("names", "list of text", "none"),
        ("deep", "mapping", "none"),
        ("on", "true or false", "`true`"),
    ],
)
def test_types_and_defaults_in_words(hook: ModuleType, key: str, kind: str, default: str) -> None:
    field = Sample.model_fields[key]
    assert (hook.kind(field), hook.default(field)) == (kind, default)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_no_table_is_left_open(hook: ModuleType, page: Path) -> None:
    assert "<!-- options" not in hook.fill_in(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("meanings", ["", "base: a name\nbass: no such key"])
def test_a_table_that_fell_behind_stops_the_build(hook: ModuleType, meanings: str) -> None:
    with pytest.raises(PluginError, match="ModelConfig"):
        hook.fill_in(f"<!-- options: luthier.training.config.ModelConfig\n{meanings}\n-->")


def test_methods_cite_their_paper_and_count_their_parameters(hook: ModuleType) -> None:
    page = hook.catalogue_page("methods")
    lora = page.partition("\n### lora\n")[2].partition("\n### ")[0]
    assert (
        "Paper: [Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models](https://arxiv.org/abs/2106.09685)."
        in lora
    )
    sides = (2 * (576 + 576), 2 * (576 + 192), 3 * (576 + 1536))
    assert f"{30 * 8 * sum(sides):,} of 136,957,248 in smollm2-135m (1.78%)" in lora
    bitfit = page.partition("\n### bitfit\n")[2].partition("\n### ")[0]
    assert "in minilm-l6" in bitfit and "in smollm2-135m" not in bitfit  # a Llama has no biases
    assert hook.cited("A 2020, B") == "Paper: A 2020, B.\n" and hook.cited(None) == ""


def test_methods_are_grouped_by_family_with_pictures_and_costs(hook: ModuleType) -> None:
    from xml.etree import ElementTree

    page = hook.catalogue_page("methods")
    families = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(families) == [family.title for family in FAMILIES.values()]
    for name in catalog.names("methods"):
        own = families[FAMILIES[catalog.load("methods", name).module.FAMILY].title]
        row = next(line for line in own.splitlines() if line.startswith(f"| [{name}](#{name}) |"))
        assert len(row.split(" | ")) == len(
            next(line for line in own.splitlines() if line.startswith("| method |")).split(" | ")
        )
        assert f"\n### {name}\n" in own
        drawn = re.search(rf'<a href="#{name}" .*?</a>', own)
        assert drawn, f"draw {name} in docs/diagrams.py"
        shapes = ElementTree.fromstring(drawn[0])[0]
        assert len(shapes) > 1 or name == "peft"
    assert "| 2,442,240 | 332,546 |" in families["Reparametrised"]
    assert "[Hu et al. 2022](https://arxiv.org/abs/2106.09685)" in families["Reparametrised"]


def test_every_class_of_the_pictures_has_a_colour(hook: ModuleType) -> None:
    css = (DOCS / "assets" / "site.css").read_text(encoding="utf-8")
    classes = set(re.findall(r'class="([\w-]+)"', hook.diagrams().family(catalog.names("methods"))))
    plain = {"methods", "on-frozen", "on-sum", "method-key"}  # as the rest of the text
    assert {each for each in classes if f".{each}" not in css} <= plain
