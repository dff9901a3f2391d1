"""Placeholders for what a model must not see, and the way back: ``[EMAIL_1]`` for an address, one mapping for each exchange.

Models repeat placeholders in other forms: small letters, a backslash before the underscore (Markdown), other brackets, none. All of these are
put back; a placeholder that nothing stands for stays as it is. A number that the conversation itself uses (somebody writes ``[EMAIL_1]``) is not given out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from luthier.gateway.guardrails._contract import Finding

NAME = "NAME"
_LATIN = r"A-Za-z\u00c0-\u024f0-9_"
_GAP = r"[ _\-\\]{0,2}"


@lru_cache(maxsize=256)
def _pattern(kinds: tuple[str, ...]) -> re.Pattern[str]:
    """Every form of a placeholder of one of ``kinds``: the kind and the number are the groups of the alternative that fits."""
    forms = []
    for kind in kinds:
        words = _GAP.join(kind.split("_"))
        strict = r"\\?_".join(kind.split("_"))
        forms.append(rf"[\[［【〔]\s{{0,2}}({words}){_GAP}(\d{{1,6}})\s{{0,2}}[\]］】〕]")
        forms.append(rf"(?<![A-Za-z0-9_])({strict})\\?_(\d{{1,6}})(?![A-Za-z0-9_])")
    return re.compile("|".join(forms), re.IGNORECASE)


_MARKS = frozenset("_[［【〔")  # none of them, no placeholder
_BETWEEN = re.compile(r"[ _\-\\]+")
_OPEN_WORD = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z][A-Za-z0-9_\\]{0,40}\Z")
_OPEN_BRACKET = re.compile(r"[\[［【〔]([A-Za-z0-9 _\-\\]{0,40})\Z")


def _read(match: Any) -> tuple[str, int]:
    kind, number = (group for group in match.groups() if group is not None)
    return _BETWEEN.sub("_", kind).upper(), int(number)


class Placeholders:
    """The mapping of one exchange. ``kinds`` are those that may come."""

    def __init__(self, kinds: Iterable[str], texts: Iterable[str] = ()) -> None:
        self._kinds = tuple(sorted(kinds))
        self._of_value: dict[tuple[str, str], str] = {}
        self._values: dict[tuple[str, int], str] = {}
        self._taken: set[tuple[str, int]] = set()
        self._last: dict[str, int] = {}
        for text in texts:
            self.reserve(text)

    def __len__(self) -> int:
        return len(self._values)

    def reserve(self, text: str) -> None:
        """Never give out a placeholder that ``text`` holds by itself."""
        if self._kinds and not _MARKS.isdisjoint(text):
            self._taken |= {_read(match) for match in _pattern(self._kinds).finditer(text)}

    def mask(self, text: str, findings: Sequence[Finding]) -> str:
        """``text`` with a placeholder for each finding (in order, without overlaps)."""
        return _replaced(text, findings, lambda finding, value: self._placeholder(finding.kind, value))

    def mask_names(self, text: str) -> str:
        """``text`` with the names that were found elsewhere in the conversation hidden, too."""
        names = sorted(
            (value for kind, value in self._of_value if kind == NAME and len(value) > 1), key=len, reverse=True
        )
        if not names:
            return text
        bounded = (
            rf"(?<![{_LATIN}\[]){re.escape(name)}(?![{_LATIN}])" if re.match(f"[{_LATIN}]", name) else re.escape(name)
            for name in names
        )
        return re.sub("|".join(bounded), lambda match: self._of_value[NAME, match[0]], text)

    def mask_known(self, text: str, findings: Sequence[Finding]) -> str:
        """The same for what a model wrote: a value that the conversation holds gets its placeholder, any other ``[KIND]``."""

        def shown(finding: Finding, value: str) -> str:
            return self._of_value.get((finding.kind, value), f"[{finding.kind}]")

        return _replaced(text, findings, shown)

    def restore(self, text: str, *, as_json: bool = False) -> str:
        """``text`` with the values in the place of their placeholders; ``as_json``: escaped as inside of a JSON string."""
        restorer = self.restorer(as_json=as_json)
        return restorer.feed(text, final=True)

    def restore_arguments(self, arguments: str) -> str:
        """JSON text with the values put back inside of its strings; other text is treated as JSON text that has a fault."""
        if not self._values or not _pattern(self._kinds).search(arguments):
            return arguments
        try:
            document = json.loads(arguments)
        except ValueError:
            return self.restore(arguments, as_json=True)
        return json.dumps(each_text(document, self.restore), ensure_ascii=False)

    def restorer(self, *, as_json: bool = False) -> Restorer:
        """``restore`` for a growing text."""
        used = tuple(sorted({kind for kind, _ in self._values}))
        return Restorer(used, self._values, as_json)

    def _placeholder(self, kind: str, value: str) -> str:
        known = self._of_value.get((kind, value))
        if known is not None:
            return known
        number = self._last.get(kind, 0) + 1
        while (kind, number) in self._taken:
            number += 1
        self._last[kind] = number
        self._values[kind, number] = value
        made = self._of_value[kind, value] = f"[{kind}_{number}]"
        return made


class Restorer:
    """Puts values back into a text that comes in pieces; what may be the beginning of a placeholder waits."""

    def __init__(self, kinds: tuple[str, ...], values: dict[tuple[str, int], str], as_json: bool) -> None:
        self._pattern = _pattern(kinds) if kinds else None
        self._kinds = tuple(kind.replace("_", "") for kind in kinds)
        self._values = values
        self._as_json = as_json
        self._held = ""
        self._kept = 0  # characters of what is held that are out already: what stands before a placeholder matters

    def feed(self, text: str, *, final: bool = False) -> str:
        """The text that is sure now."""
        if self._pattern is None:
            return text
        held = self._held + text
        sure = len(held) if final else self._sure(held)
        out, at = [], self._kept
        for match in self._pattern.finditer(held, self._kept, sure):
            out += [held[at : match.start()], self._value(match)]
            at = match.end()
        out.append(held[at:sure])
        before = max(0, sure - 1)
        self._held, self._kept = held[before:], sure - before
        return "".join(out)

    def _sure(self, held: str) -> int:
        """Where the end of ``held`` begins that may be the beginning of a placeholder."""
        for pattern in (_OPEN_BRACKET, _OPEN_WORD):
            found = pattern.search(held, max(self._kept, len(held) - 42))
            if found is not None and self._begins(_BETWEEN.sub("", found[found.lastindex or 0]).upper()):
                return found.start()
        return len(held)

    def _begins(self, letters: str) -> bool:
        return any(
            kind.startswith(letters) or (letters.startswith(kind) and letters[len(kind) :].isdigit())
            for kind in self._kinds
        )

    def _value(self, match: Any) -> str:
        value = self._values.get(_read(match))
        if value is None:
            return str(match[0])
        return json.dumps(value, ensure_ascii=False)[1:-1] if self._as_json else value


def mask_arguments(arguments: str, mask: Callable[[str], str]) -> str:
    """JSON text with every string in it (and every whole number, as a text, when it changes) masked; other text as it is."""
    try:
        document = json.loads(arguments)
    except ValueError:
        return mask(arguments)
    masked = each_text(document, mask, numbers=True)
    return arguments if masked == document else json.dumps(masked, ensure_ascii=False)


def each_text(value: Any, change: Callable[[str], str], *, numbers: bool = False) -> Any:
    """A JSON value with every text in it changed; ``numbers``: whole numbers, too, which become texts when they change."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): each_text(each, change, numbers=numbers) for key, each in value.items()}
    if isinstance(value, list):
        return [each_text(each, change, numbers=numbers) for each in value]
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        changed = change(str(value))
        return value if changed == str(value) else changed
    return value


def _replaced(text: str, findings: Sequence[Finding], shown: Callable[[Finding, str], str]) -> str:
    out, at = [], 0
    for finding in findings:
        out += [text[at : finding.start], shown(finding, text[finding.start : finding.end])]
        at = finding.end
    return "".join([*out, text[at:]])
