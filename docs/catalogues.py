"""Keeps the site in step with the code when it is built.

Writes one page per catalogue (what each entry says of itself, its options), and replaces ``<!-- options: MODULE.CLASS ... -->`` in any
page by a table of that class's fields. The lines inside the comment are ``key: meaning``, one for each field; a field without one, or a
meaning for a field that does not exist, stops the build.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
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
    "optimizers": "How a step follows from the gradient. Choose one with `train.optimizer` in a run file: a name, or `{name: ..., options}`; "
    "[tune](../tune.md#optimizers-schedules-averages) says when which.",
    "guardrails": "What is looked for in what goes to a model and in what comes back. Choose them in the section `guardrails` of the gateway's "
    "configuration; [guardrails](../guardrails.md) says what is done about their findings.",
    "routes": "How a route of the gateway chooses what answers. Choose one with `strategy:` in a route of `gateway.yaml`; its options stand "
    "beside it. [Routes](../routes.md) says when which.",
    "parsers": "What files become text with. The content of a file decides which one reads it; options go to `luthier kb add` as "
    "`--option PARSER.KEY=VALUE`.",
    "chunkers": "How documents are cut into the pieces that are embedded and found. Choose one with `--chunker` of `luthier kb create`.",
    "indexes": "What keeps chunks and their vectors. Choose one with `--index` of `luthier kb create`.",
    "retrievers": "The steps of a search, each around the next. Choose them with `retrieval=[...]` of `luthier kb set`, or `--retrieval` of "
    "`luthier kb search`.",
    "answers": "How a question is answered from the passages that a search found. Choose one with `--mode` of `luthier kb ask`, or for a knowledge base with "
    "`luthier kb set`; [answers](../rag.md) says when which.",
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
    if catalogue == "methods":
        return methods_page()
    parts = [f"# {catalogue.capitalize()}\n\n{INTRODUCTIONS[catalogue]} This page is generated from the code.\n"]
    parts += [section(catalogue, name) for name in catalog.names(catalogue)]
    return "\n".join(part for part in parts if part)


def section(catalogue: str, name: str, heading: str = "##") -> str:
    """What one entry says of itself."""
    entry = catalog.load(catalogue, name)
    parts = [f"{heading} {name}\n\n{prose(entry.module.__doc__)}\n", cited(entry.optional("PAPER"))]
    parts.append(takes(entry.optional("KINDS"), entry.optional("ARCHITECTURES"), entry.optional("DEFAULT_FOR")))
    parts.append(served(entry.optional("SERVING")))
    if catalogue == "methods":
        parts.append(trained(name))
    parts += [defaults(entry.optional("DEFAULTS")), options(entry.config_class)]
    return "\n".join(part for part in parts if part)


def methods_page() -> str:
    """The page of methods: by family, each with its pictures and a table of what its methods cost, then every method in full."""
    from luthier.methods._describe import FAMILIES, family_of, measured_on

    families: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for name in catalog.names("methods"):
        families[family_of(catalog.load("methods", name))].append(name)
    parts = [
        f"# Methods\n\n{INTRODUCTIONS['methods']} This page is generated from the code; `luthier methods` prints its tables.\n"
    ]
    speed = (
        f" Speed: tokens a second of training over those of lora, measured on {measured_on()}." if measured_on() else ""
    )
    parts.append(
        "Parameters: what is trained with the default options, in SmolLM2-135M (a decoder) and MiniLM (an encoder). Memory: what training "
        f"SmolLM2-135M takes in bf16 with micro-batches of 2,048 tokens.{speed} torch and llama.cpp: how the engine serves the result of a "
        "decoder: hot-swapped on its base, merged into it first, or not at all.\n"
    )
    for name, found in families.items():
        if found:
            family = FAMILIES[name]
            parts += [f"## {family.title}\n\n{family.about.capitalize()}.\n", diagrams().family(found), costs(found)]
            parts += [section("methods", method, "###") for method in found]
    return "\n".join(part for part in parts if part)


@cache
def diagrams() -> types.ModuleType:
    """The drawings, which are in a file beside this one."""
    spec = importlib.util.spec_from_file_location("docs_diagrams", Path(__file__).with_name("diagrams.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def costs(methods: Sequence[str]) -> str:
    """A row a method: parameters, memory, speed, engines, paper."""
    from luthier.methods._describe import describe, figures

    timed = any(one.speed is not None for rows in figures().values() for one in rows.values())
    columns = ["decoder", "encoder", "memory", *(["speed"] if timed else []), "torch", "llama.cpp", "paper"]
    rows = [f"| method | {' | '.join(columns)} |", "|---" + "|--:" * (len(columns) - 3) + "|---|---|---|"]
    for name in methods:
        told, found = describe(name), figures().get(name, {})
        decoder, encoder = (found.get(model) for model in ("smollm2-135m", "minilm-l6"))
        best = decoder if decoder is not None and not decoder.why_not else encoder
        serving = told.serving.get("decoder") or next(iter(told.serving.values()))
        memory = f"{best.memory_mb / 1000:.2f} GB" if best is not None and best.memory_mb is not None else ""
        speed = f"{best.speed:.2f}x" if best is not None and best.speed is not None else ""
        counts = [f"{one.trained:,}" if one is not None and one.trained else "" for one in (decoder, encoder)]
        cells = [
            f"[{name}](#{name})",
            *counts,
            memory,
            *([speed] if timed else []),
            serving.get("torch", "no"),
            serving.get("llamacpp", "no"),
            link(told.paper),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def link(paper: str) -> str:
    """``Hu et al. 2022`` as a link to the paper."""
    from luthier.cli.methods import short_paper

    told, _, address = paper.rpartition(", ")
    return f"[{short_paper(told)}]({address})" if address.startswith("https://") else short_paper(paper)


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
    from luthier.methods._describe import figures

    told = [
        f"{one.trained:,} of {one.total:,} in {model} ({100 * one.share:.3g}%)"
        for model, one in figures().get(method, {}).items()
        if not one.why_not
    ]
    return f"Parameters that it trains with its default options: {'; '.join(told)}.\n" if told else ""


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
