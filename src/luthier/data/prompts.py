"""The prompt catalogue: templates as files, each with a name, a version and a digest.

Those that come with Luthier lie in ``data/prompts/``, a user's own in ``LUTHIER_HOME/prompts/``, both as ``NAME@VERSION.yaml``:

    about: Sort a text into one of the labels.
    language: en
    instruction: "Sort the message into one of: {labels}. Answer with the class only."
    input: "{input}"

That is a prompt for a task. A file with ``text`` in place of ``input`` is a piece of text that a strategy or a judge uses. What else
is to be filled in is listed under ``placeholders``; nothing that is not listed is replaced. A version is written once and never
changed: a better wording is the next version. A user's own name goes before a shipped one.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.config import Document, from_mapping, read_yaml, validate
from luthier.core.digest import digest_json
from luthier.core.errors import ConflictError, InputError, NotFoundError, did_you_mean
from luthier.core.task import PromptTemplate
from luthier.store.home import disk_errors, home, sync_folder, write_atomic

if TYPE_CHECKING:
    from luthier.store.database import Store

SHIPPED = Path(__file__).parent / "prompts"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,79}")
_FILE = re.compile(rf"({_NAME.pattern})@([1-9][0-9]{{0,8}})\.yaml")
_PLACE = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_OWN_PLACES = ("input", "labels")  # of a task's prompt; PromptTemplate fills them in


class PromptFile(EntryConfig):
    """A template file. Either ``input`` (with an ``instruction``, when there is one) or ``text`` is required."""

    about: str = Field(min_length=1, max_length=200)
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}$")
    instruction: str = ""
    input: str | None = None
    text: str | None = None
    placeholders: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredPrompt:
    """One version of a template.

    ``template`` is set for a prompt of a task, ``text`` for a piece of text. ``digest`` is sha256 over what is asked (not over
    ``about``). ``source`` is ``shipped``, or the path of the user's file.
    """

    name: str
    version: int
    about: str
    language: str
    template: PromptTemplate | None
    text: str
    placeholders: tuple[str, ...]
    digest: str
    source: str

    @property
    def label(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    def fill(self, **values: str) -> str:
        """The text with every placeholder replaced, all at once, so that braces in values stay as they are.

        Raises InputError when this is a task's prompt, or the values are not those that its placeholders want.
        """
        if self.template is not None:
            raise InputError(
                f"prompt {self.label} is a prompt for a task (it has input); here a piece of text is needed"
            )
        return self._replace(self.text, values)

    def template_for(self, labels: Sequence[str] = (), **values: str) -> PromptTemplate:
        """The task's prompt with ``labels``, its other placeholders replaced by ``values``; ``{labels}`` may also stand in the input.

        Raises InputError as ``fill`` does.
        """
        if self.template is None:
            raise InputError(f"prompt {self.label} is a piece of text; here a prompt for a task is needed (with input)")
        return PromptTemplate(
            self._replace(self.template.instruction, values),
            self._replace(self.template.input, values).replace("{labels}", ", ".join(labels)),
            tuple(labels),
            source=f"{self.label} sha256:{self.digest}",
        )

    def _replace(self, text: str, values: Mapping[str, str]) -> str:
        lacks = sorted(set(self.placeholders) - set(values))
        extra = sorted(set(values) - set(self.placeholders))
        if lacks:
            raise InputError(f"prompt {self.label} needs a value for {', '.join(lacks)}")
        if extra:
            raise InputError(
                f"prompt {self.label} has no placeholder {extra[0]!r}. {did_you_mean(extra[0], self.placeholders)}"
            )
        return _PLACE.sub(lambda found: values.get(found[1], found[0]), text)

    def as_yaml(self) -> str:
        """The file's text in canonical order, for showing and comparing."""
        values: dict[str, Any] = {"about": self.about, "language": self.language}
        if self.placeholders:
            values["placeholders"] = list(self.placeholders)
        if self.template is None:
            values["text"] = self.text
        else:
            values |= {"instruction": self.template.instruction, "input": self.template.input}
        return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines are written as blocks, as people do."""


def _write_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _write_text)


def load_prompt(name: str, store: Store | None = None) -> StoredPrompt:
    """The template called ``NAME`` (its newest version) or ``NAME@VERSION``.

    Raises NotFoundError for a name or version that is not there, InputError that names file and key for a file that cannot be used.
    """
    wanted, at, number = name.partition("@")
    found = _versions(store).get(wanted)
    if found is None:
        raise NotFoundError(
            f"prompt {wanted!r} is not in the catalogue. {did_you_mean(wanted, _versions(store))}",
            hint="luthier prompts list, or add your own: luthier prompts add FILE.yaml",
        )
    if not at:
        return _read(found[max(found)])
    if not number.isdecimal() or int(number) not in found:
        raise NotFoundError(
            f"prompt {wanted!r} has no version {number!r}; it has {', '.join(map(str, sorted(found)))}",
            hint=f"luthier prompts show {wanted}",
        )
    return _read(found[int(number)])


def list_prompts(store: Store | None = None, problems: list[str] | None = None) -> list[StoredPrompt]:
    """Every version of every template, by name and version.

    A file that cannot be used raises InputError; with ``problems`` its error is put there instead, and the others are listed.
    """
    out = []
    for versions in _versions(store).values():
        for path in versions.values():
            try:
                out.append(_read(path))
            except InputError as error:
                if problems is None:
                    raise
                problems.append(error.message)
    if problems is not None and (own := _own(store)).is_dir():
        stray = [path for path in sorted(own.iterdir()) if path.suffix in (".yaml", ".yml") and not _file(path)]
        problems += [
            f"{path}: a prompt's file is named NAME@VERSION.yaml; add it: luthier prompts add" for path in stray
        ]
    return out


def save_prompt(name: str, values: Mapping[str, Any] | Document, store: Store | None = None) -> StoredPrompt:
    """Keep ``values`` (the keys of a template file) as the next version of a user's own template.

    What equals the newest version is not kept twice. Raises InputError for values that cannot be used, ConflictError for the name
    of a shipped template, StoreError when the disk refuses.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"a prompt's name is lower-case letters, digits and . _ -, at most 80; got {name!r}")
    document = values if isinstance(values, Document) else from_mapping(values)
    folder = _own(store)
    own = _files(folder).get(name, {})
    if not own and name in _files(SHIPPED):
        raise ConflictError(f"prompt {name!r} comes with Luthier", hint="give yours another name: --name NAME")
    made = _parse(name, max(own, default=0) + 1, document, where=name)
    if own and (newest := _read(own[max(own)])).as_yaml() == made.as_yaml():
        return newest
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    while not _create(folder / f"{made.label}.yaml", made.as_yaml()):  # somebody else took this number meanwhile
        made = _parse(name, made.version + 1, document, where=name)
    return load_prompt(made.label, store)


def add_prompt(file: str | Path, name: str | None = None, store: Store | None = None) -> StoredPrompt:
    """Keep a template file under its own name (its stem), or ``name``. A ``@VERSION`` in the file's name is left away."""
    path = Path(file)
    document = read_yaml(path)
    _parse("new", 1, document, where=path.name)  # errors name the file before anything is kept
    return save_prompt(name or path.stem.partition("@")[0], document, store)


def resolve_prompt(prompt: Mapping[str, Any], store: Store | None = None) -> PromptTemplate:
    """A task's prompt from plain values: ``instruction``, ``input``, ``labels``; or ``template`` (``NAME`` or ``NAME@VERSION`` of the
    catalogue), with ``labels`` and ``values`` for its other placeholders.

    Raises InputError for an unknown key or an ``input`` without ``{input}``, NotFoundError for an unknown template.
    """
    known = ("instruction", "input", "labels", "template", "values", "source")
    for key in prompt:
        if key not in known:
            raise InputError(f"prompt: unknown key {key!r}. {did_you_mean(str(key), known[:-1])}")
    name, labels = prompt.get("template"), tuple(prompt.get("labels") or ())
    if name:
        for key in ("instruction", "input"):
            if prompt.get(key) is not None:
                raise InputError(f"prompt.template and prompt.{key} exclude each other: {name} has an {key} of its own")
        values = {str(key): str(value) for key, value in dict(prompt.get("values") or {}).items()}
        return load_prompt(str(name), store).template_for(labels, **values)
    if prompt.get("values"):
        raise InputError("prompt.values are for the placeholders of a prompt.template, and none is named")
    template = PromptTemplate.from_dict({key: value for key, value in prompt.items() if value is not None})
    if "{input}" not in template.input:
        raise InputError(f"prompt.input must contain {{input}}, where the text goes; got {template.input!r}")
    return template


def is_prompt_name(text: str) -> bool:
    """Whether ``text`` could be ``NAME`` or ``NAME@VERSION``, rather than a text of its own."""
    return re.fullmatch(rf"{_NAME.pattern}(@[0-9]+)?", text) is not None


def in_language(name: str, text: str, store: Store | None = None) -> StoredPrompt:
    """Template ``name``, or its Chinese sister when ``text`` is Chinese and there is one."""
    sister = chinese_sister(name, store) if is_chinese(text) else None
    return sister or load_prompt(name, store)


def chinese_sister(name: str, store: Store | None = None) -> StoredPrompt | None:
    """``NAME_zh``, which says the same in Chinese; of the version that ``name`` gives, else the newest. None when there is none."""
    plain, at, version = name.partition("@")
    found = _versions(store).get(f"{plain}_zh", {})
    return load_prompt(f"{plain}_zh{at}{version}", store) if found and (not at or int(version) in found) else None


def is_chinese(text: str) -> bool:
    """Whether most of the letters in ``text`` are Chinese: a character counts as much as three letters of an alphabet."""
    characters = sum("\u3400" <= c <= "\u9fff" or "\U00020000" <= c <= "\U0003ffff" for c in text)
    kana = sum("\u3040" <= c <= "\u30ff" for c in text)
    letters = sum(c.isalpha() for c in text) - characters - kana
    return characters > 0 and 3 * characters > letters and 4 * kana < characters


def _own(store: Store | None) -> Path:
    return (store.home if store is not None else home()).root / "prompts"


def _file(path: Path) -> re.Match[str] | None:
    return _FILE.fullmatch(path.name)


def _files(folder: Path) -> dict[str, dict[int, Path]]:
    """Name -> version -> file."""
    out: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (found := _file(path)) and path.is_file():
            out.setdefault(found[1], {})[int(found[2])] = path
    return {name: dict(sorted(versions.items())) for name, versions in out.items()}


def _versions(store: Store | None) -> dict[str, dict[int, Path]]:
    return dict(sorted((_files(SHIPPED) | _files(_own(store))).items()))


def _read(path: Path) -> StoredPrompt:
    found = _file(path)
    assert found is not None
    source = "shipped" if path.parent == SHIPPED else str(path)
    return _parse(found[1], int(found[2]), read_yaml(path), where=path.name, source=source)


def _parse(name: str, version: int, document: Document, *, where: str, source: str = "") -> StoredPrompt:
    """Check a template; every error names file and key."""
    file = validate(PromptFile, document.values, where=where, origins=document.origins)

    def wrong(key: str, reason: str) -> InputError:
        origin = f" ({document.origins[key]})" if key in document.origins else ""
        return InputError(f"{where}: {key}: {reason}{origin}")

    if (file.input is None) == (file.text is None):
        both = "input and text exclude each other" if file.text is not None else "input (or text) is required"
        raise wrong("input", f"{both}: input is for a prompt of a task, text for a piece of text")
    if file.text is not None and file.instruction:
        raise wrong("instruction", "belongs to a prompt of a task, with input; a piece of text has text alone")
    if file.input is not None and "{input}" not in file.input:
        raise wrong("input", f"must contain {{input}}, where the text goes; got {file.input!r}")
    parts = (
        {"text": file.text} if file.text is not None else {"instruction": file.instruction, "input": file.input or ""}
    )
    allowed = file.placeholders if file.text is not None else (*file.placeholders, *_OWN_PLACES)
    for place in file.placeholders:
        if not _PLACE.fullmatch(f"{{{place}}}") or (file.input is not None and place in _OWN_PLACES):
            raise wrong(
                "placeholders", f"{place!r} cannot be one; names are lower-case words other than input and labels"
            )
        if not any(f"{{{place}}}" in part for part in parts.values()):
            raise wrong("placeholders", f"{{{place}}} does not occur in the {' or '.join(parts)}")
    for key, part in parts.items():
        for found in _PLACE.findall(part):
            if found not in allowed:
                raise wrong(key, f"{{{found}}} is not listed under placeholders. {did_you_mean(found, allowed)}")
    template = PromptTemplate(file.instruction, file.input) if file.input is not None else None
    text = file.text or ""
    return StoredPrompt(
        name, version, file.about, file.language, template, text, file.placeholders, digest_json(parts), source
    )


def _create(path: Path, content: str) -> bool:
    """Write a file that must not be there yet, whole or not at all; False when it is."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        write_atomic(aside, content)
        with disk_errors(path):
            try:
                os.link(aside, path)
            except FileExistsError:
                return False
        sync_folder(path.parent)
        return True
    finally:
        aside.unlink(missing_ok=True)
