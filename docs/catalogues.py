"""Keeps the site in step with the code when it is built.

Writes one page per catalogue (what each entry says of itself, its options), and replaces ``<!-- options: MODULE.CLASS ... -->`` in any
page by a table of that class's fields. The lines inside the comment are ``key: meaning``, one for each field; a field without one, or a
meaning for a field that does not exist, stops the build.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from luthier.core import catalog

INTRODUCTIONS = {
    "methods": "How weights change. Choose one with `method:` in a run file.",
    "objectives": "What is minimised. Choose one with `objective:` in a run file; left out, the kind of the data decides.",
    "engines": "Text in, tokens out. Choose one with `--engine`; give its options to `luthier eval` as `--engine-option KEY=VALUE`, "
    "from Python as `options={...}`.",
    "strategies": "How a question is put to an engine. A strategy wraps an engine and is an engine. Choose one with `--strategy`, "
    "or with `strategy:` in an entrant.",
    "scorers": "An answer and a target give a score, for every example. Choose them with `scorers:` in a task file; the first one ranks.",
    "tasks": "Where examples, prompt and scorers come from.",
}
HOW = {"swap": "hot-swapped on its base", "merge": "as weights of its own", "no": "not possible"}

_PLACEHOLDER = re.compile(r"<!-- options: (?P<module>[\w.]+)\.(?P<name>\w+)\n(?P<meanings>.*?)-->", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for catalogue in INTRODUCTIONS:
        files.append(File.generated(config, f"catalogues/{catalogue}.md", content=catalogue_page(catalogue)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the tables of options."""
    return fill_in(markdown)


def fill_in(markdown: str) -> str:
    """``markdown`` with a table in the place of each comment. Raises PluginError when a comment and its class disagree."""
    return _PLACEHOLDER.sub(lambda found: _described(found["module"], found["name"], found["meanings"]), markdown)


def _described(module: str, name: str, text: str) -> str:
    config_class = getattr(importlib.import_module(module), name)
    meanings = dict(_meanings(text))
    known, told = set(config_class.model_fields), set(meanings)
    if known != told:
        raise PluginError(
            f"options of {module}.{name}: no meaning for {sorted(known - told)}, no such field {sorted(told - known)}"
        )
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in config_class.model_fields.items():
        rows.append(f"| `{key}` | {kind(field)} | {default(field)} | {meanings[key]} |")
    return "\n".join(rows)


def _meanings(text: str) -> list[tuple[str, str]]:
    out = []
    for line in filter(str.strip, text.splitlines()):
        key, _, meaning = line.partition(":")
        out.append((key.strip(), meaning.strip().replace("|", "\\|")))
    return out


def catalogue_page(catalogue: str) -> str:
    """Markdown for one catalogue."""
    parts = [f"# {catalogue.capitalize()}\n\n{INTRODUCTIONS[catalogue]} This page is generated from the code.\n"]
    for name in catalog.names(catalogue):
        entry = catalog.load(catalogue, name)
        parts.append(f"## {name}\n\n{prose(entry.module.__doc__)}\n")
        parts.append(cited(entry.optional("PAPER")))
        parts.append(takes(entry.optional("KINDS"), entry.optional("ARCHITECTURES"), entry.optional("DEFAULT_FOR")))
        parts.append(served(entry.optional("SERVING")))
        if catalogue == "methods":
            parts.append(trained(name))
        parts.append(defaults(entry.optional("DEFAULTS")))
        parts.append(options(entry.config_class))
    return "\n".join(part for part in parts if part)


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: its double backticks become single ones, the rest reads as it is."""
    return inspect.cleandoc(docstring or "").replace("``", "`")


def cited(paper: str | None) -> str:
    """An entry's ``PAPER``, ``Authors year, Title, address``, as a link."""
    if not paper:
        return ""
    told, _, address = paper.rpartition(", ")
    return f"Paper: [{told}]({address}).\n" if address.startswith("https://") else f"Paper: {paper}.\n"


def takes(kinds: Sequence[str] | None, architectures: Sequence[str] | None, default_for: Sequence[str] | None) -> str:
    """Which data and models an objective is for."""
    if not kinds:
        return ""
    told = f"Takes data of kind {', '.join(kinds)}; models: {', '.join(architectures or ())}."
    return told + (f" The default for {', '.join(default_for)}.\n" if default_for else "\n")


def served(serving: Mapping[str, Mapping[str, str]] | None) -> str:
    """Where a method's result can be served, by architecture and engine."""
    if not serving:
        return ""
    engines = list(dict.fromkeys(engine for row in serving.values() for engine in row))
    rows = [f"| served by | {' | '.join(engines)} |", "|---" * (len(engines) + 1) + "|"]
    for architecture, row in serving.items():
        rows.append(f"| {architecture} | {' | '.join(HOW[row.get(engine, 'no')] for engine in engines)} |")
    return "\n".join(rows) + "\n"


def trained(method: str) -> str:
    """How many parameters a method trains in the two models that come with Luthier."""
    told = [
        f"{found[method].trained:,} of {found[method].total:,} in {model} ({100 * found[method].share:.3g}%)"
        for model, found in _counts().items()
        if not found[method].why_not
    ]
    return f"Parameters that it trains with its default options: {'; '.join(told)}.\n" if told else ""


@cache
def _counts() -> Mapping[str, Mapping[str, Any]]:
    """Model -> method -> count, from the models' shapes alone."""
    from transformers import BertConfig, LlamaConfig

    from luthier.core.model import ModelRecord
    from luthier.methods._describe import count_in
    from luthier.models.shapes import sketch_of

    decoder = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    encoder = BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12)
    return {
        "smollm2-135m": count_in(sketch_of(ModelRecord("smollm2-135m", "base", "decoder", ""), decoder)),
        "minilm-l6": count_in(sketch_of(ModelRecord("minilm-l6", "base", "encoder", ""), encoder, labels=("a", "b"))),
    }


def defaults(found: Mapping[str, Mapping[str, Any]] | None) -> str:
    """The ``train`` values that an entry brings along, by architecture."""
    told = [
        f"{architecture}: {', '.join(f'`{key}: {value}`' for key, value in values.items())}"
        for architecture, values in (found or {}).items()
        if values
    ]
    return f"Sets `train` values that nobody gave. {'; '.join(told)}.\n" if told else ""


def options(config_class: type[BaseModel]) -> str:
    """What a Config says of its fields, and the table of them."""
    if not config_class.model_fields:
        return "No options.\n"
    rows = ["| option | type | default |", "|---|---|---|"]
    for key, field in config_class.model_fields.items():
        rows.append(f"| `{key}` | {kind(field)} | {default(field)} |")
    return f"{prose(config_class.__doc__)}\n\n" + "\n".join(rows) + "\n"


def kind(field: FieldInfo) -> str:
    """The type of a field in words, with its bounds."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{signs[key]} {getattr(limit, key):g}" for limit in field.metadata for key in signs if hasattr(limit, key)
    ]
    return ", ".join([_type(field.annotation), *bounds])


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(each) for each in inner if each is not type(None))
    if origin in (list, tuple):
        parts = [_type(each) for each in inner if each is not Ellipsis]
        return f"list of {parts[0]}" if len(set(parts)) == 1 else f"({', '.join(parts)})"
    if origin is not None:
        return "mapping" if len(inner) == 2 else str(origin.__name__)
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Any": "anything"}
    name = getattr(annotation, "__name__", str(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return words.get(name, name)


def default(field: FieldInfo) -> str:
    """The default as YAML would write it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its own"
    if value is None or value in ("", (), [], {}):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
