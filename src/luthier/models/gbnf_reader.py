"""GBNF, llama.cpp's grammars: read, checked, and written in llguidance's language.

The syntax is that of llama.cpp's own reader (rules ``name ::= ...``, literals, classes, groups, ``* + ? {m,n}``, comments), and three rules more that forced
tool calls need (``luthier.data.tools``): ``%json SCHEMA``, ``%text "MARK"`` and ``%until "MARK"``, each alone in its line.

llguidance cuts a text into lexemes before it looks at rules, and a lexeme takes all it can. So that a text is accepted just when GBNF derives it, all
that does not call itself becomes one lexeme: a grammar without recursion is one regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from luthier.core.errors import InputError
from luthier.models.patterns import ANY, LAST, Chars, Choice, Node, Ref, Repeat, Seq, chars, literal, others, to_regex

MOST_RULES = 2_000
"""Rules of a grammar that somebody wrote; those that Luthier writes may have more."""
_INLINE = 20_000
"""Parts up to which a rule is written out where it is used."""

_SPACES = re.compile(r"(?:[ \t]|#[^\n\r]*)*")
_LINES = re.compile(r"(?:[ \t\r\n]|#[^\n\r]*)*")
_NAME = re.compile(r"[A-Za-z0-9-]+")
_COUNT = re.compile(r"\{[ \t]*(\d{1,9})[ \t]*(,[ \t]*(\d{1,9})?[ \t]*)?\}")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_SHORT = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "[": "[", "]": "]"}
ADDED = r"%(json|text|until|string)[ \t]+([^\n\r]+)"
_ADDED = re.compile(ADDED)
_CLASS = re.compile(r"\[(?:[^\\\]]|\\.)*\]", re.DOTALL)
_classes: dict[str, Chars] = {}
"""Classes that were read before: grammars of schemas hold the same few hundreds of times."""
_MOST_CLASSES = 10_000
TOKEN = re.compile(r"(?:.*-)?token-[0-9]+")
"""Names of rules that are lexemes. Where there are some, nothing is joined with its neighbours: lexemes of which one begins another are told
apart by their ends only, so that all that may stand at one place must be cut in the same way."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """Rules by name; a ``Ref`` is to one of them, or to one of ``added`` (kind, value)."""

    rules: Mapping[str, Node]
    added: Mapping[str, tuple[str, str]]


def read_gbnf(text: str, most_rules: int = MOST_RULES) -> Grammar:
    """The rules of ``text``. Raises InputError that says where it is wrong, which rule is missing or endless."""
    reader = _Reader(text, most_rules)
    try:
        rules, added = reader.rules()
    except RecursionError as error:
        raise InputError("constraint grammar is nested too deeply") from error
    if "root" not in rules and "root" not in added:
        raise InputError(f"constraint grammar needs a rule root; got {', '.join(list(rules)[:5]) or 'none'}")
    missing = sorted(reader.called - set(rules) - set(added))
    if missing:
        raise InputError(f"constraint grammar is not GBNF: no rule is called {missing[0]}")
    grammar = Grammar(rules, added)
    _check_left(grammar)
    _check_ends(grammar)
    return grammar


class _Reader:
    """One pass over the text of a grammar."""

    def __init__(self, text: str, most_rules: int) -> None:
        self._text, self._at, self._most_rules = text, 0, most_rules
        self.called: set[str] = set()

    def rules(self) -> tuple[dict[str, Node], dict[str, tuple[str, str]]]:
        rules: dict[str, Node] = {}
        added: dict[str, tuple[str, str]] = {}
        self._skip(_LINES)
        while self._at < len(self._text):
            name = self._take(_NAME, "a rule's name").group()
            self._skip(_SPACES)
            if not self._text.startswith("::=", self._at):
                raise self._error("::=")
            self._at += 3
            self._skip(_LINES)
            rules.pop(name, None)  # the last of two rules counts, as in llama.cpp
            found = _ADDED.match(self._text, self._at)
            if found:
                added[name] = (found[1], found[2].strip())
                self._at = found.end()
            else:
                rules[name] = self._choice(nested=False)
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                raise self._error("the end of a line")
            self._skip(_LINES)
            if len(rules) + len(added) > self._most_rules:
                raise InputError(f"constraint grammar must have at most {self._most_rules:,} rules")
        return rules, added

    def _choice(self, *, nested: bool) -> Node:
        options = [self._sequence(nested=nested)]
        while self._text.startswith("|", self._at):
            self._at += 1
            self._skip(_LINES)
            options.append(self._sequence(nested=nested))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self, *, nested: bool) -> Node:
        parts: list[Node] = []
        spaces = _LINES if nested else _SPACES
        while (part := self._part()) is not None:
            self._skip(spaces)
            while (times := self._times()) is not None:
                part = Repeat(part, *times)
                self._skip(spaces)
            parts.append(part)
        return parts[0] if len(parts) == 1 else Seq(tuple(parts))

    def _part(self) -> Node | None:
        here = self._text[self._at : self._at + 1]
        if here == '"':
            return self._literal()
        if here == "[":
            return self._class()
        if here == ".":
            self._at += 1
            return ANY
        if here == "(":
            self._at += 1
            self._skip(_LINES)
            inner = self._choice(nested=True)
            if not self._text.startswith(")", self._at):
                raise self._error("a closing parenthesis")
            self._at += 1
            return inner
        if here and _NAME.match(here):
            name = self._take(_NAME, "a rule's name").group()
            self.called.add(name)
            return Ref(name)
        return None

    def _literal(self) -> Node:
        start, letters = self._at, []
        self._at += 1
        while not self._text.startswith('"', self._at):
            letters.append(self._letter(start, "a closing quotation mark"))
        self._at += 1
        return literal("".join(letters))

    def _class(self) -> Node:
        found = _CLASS.match(self._text, self._at)
        known = _classes.get(found.group()) if found else None
        start = self._at
        if found and known is not None:
            self._at = found.end()
            return known
        self._at += 1
        negated = self._text.startswith("^", self._at)
        self._at += negated
        pairs = []
        while not self._text.startswith("]", self._at):
            low = high = ord(self._letter(start, "a closing bracket"))
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                high = ord(self._letter(start, "a closing bracket"))
            pairs.append((low, high))
        self._at += 1
        read = others(chars(*pairs)) if negated else chars(*pairs)
        if len(_classes) < _MOST_CLASSES:
            _classes[self._text[start : self._at]] = read
        return read

    def _letter(self, start: int, wanted: str) -> str:
        if self._at >= len(self._text):
            self._at = start
            raise self._error(wanted)
        if self._text[self._at] != "\\":
            self._at += 1
            return self._text[self._at - 1]
        found = _ESCAPE.match(self._text, self._at)
        code = next((int(part, 16) for part in found.groups()[:3] if part), -1) if found else -1
        if found is None or code > LAST or (code < 0 and found[4] not in _SHORT):
            raise self._error('an escape (\\n \\r \\t \\" \\\\ \\[ \\] \\xNN \\uNNNN \\UNNNNNNNN)')
        self._at = found.end()
        return chr(code) if code >= 0 else _SHORT[found[4]]

    def _times(self) -> tuple[int, int | None] | None:
        here = self._text[self._at : self._at + 1]
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if here in simple:
            self._at += 1
            return simple[here]
        if here != "{":
            return None
        found = self._take(_COUNT, "a count {m}, {m,} or {m,n}")
        least = int(found[1])
        most = least if found[2] is None else None if found[3] is None else int(found[3])
        if most is not None and most < least:
            raise self._error(f"a count whose end is at least {least}")
        return least, most

    def _skip(self, spaces: re.Pattern[str]) -> None:
        found = spaces.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _take(self, pattern: re.Pattern[str], wanted: str) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise self._error(wanted)
        self._at = found.end()
        return found

    def _error(self, wanted: str) -> InputError:
        line = self._text.count("\n", 0, self._at) + 1
        got = self._text[self._at : self._at + 20].split("\n")[0] or "the end"
        return InputError(f"constraint grammar is not GBNF: line {line} needs {wanted}; got {got!r}")


def _check_left(grammar: Grammar) -> None:
    """Raise InputError for a rule that calls itself before it has read anything: llama.cpp would never come back."""
    empty = _nullable(grammar)
    first = {name: set(_first(node, empty)) for name, node in grammar.rules.items()}
    for name, begins in first.items():
        seen: set[str] = set()
        reached = set(begins)
        while reached - seen:
            seen |= reached
            reached = {later for other in reached for later in first.get(other, ())}
        if name in seen:
            raise InputError(
                f"constraint grammar: rule {name} calls itself before it has read anything (left recursion)"
            )


def _check_ends(grammar: Grammar) -> None:
    """Raise InputError for a rule that no text ends."""
    ends = set(grammar.added)
    while True:
        more = {name for name, node in grammar.rules.items() if name not in ends and _ends(node, ends)}
        if not more:
            break
        ends |= more
    endless = [name for name in grammar.rules if name not in ends]
    if endless:
        raise InputError(f"constraint: rule {endless[0]} of the grammar never ends, as it always calls itself")


def _ends(node: Node, ends: set[str]) -> bool:
    if isinstance(node, Ref):
        return node.name in ends
    if isinstance(node, Repeat):
        return not node.least or _ends(node.part, ends)
    if isinstance(node, Seq):
        return all(_ends(part, ends) for part in node.parts)
    return isinstance(node, Chars) or any(_ends(option, ends) for option in node.options)


def _nullable(grammar: Grammar) -> set[str]:
    """Rules that may be empty."""
    empty = {name for name, (kind, _) in grammar.added.items() if kind == "text"}
    while True:
        more = {name for name, node in grammar.rules.items() if _may_be_empty(node, empty)} - empty
        if not more:
            return empty
        empty |= more


def _may_be_empty(node: Node, empty: set[str]) -> bool:
    if isinstance(node, Ref):
        return node.name in empty
    if isinstance(node, Repeat):
        return not node.least or _may_be_empty(node.part, empty)
    if isinstance(node, Chars):
        return False
    if isinstance(node, Seq):
        return all(_may_be_empty(part, empty) for part in node.parts)
    return any(_may_be_empty(part, empty) for part in node.options)


def _first(node: Node, empty: set[str]) -> list[str]:
    """Rules that may begin what ``node`` reads."""
    if isinstance(node, Ref):
        return [node.name]
    if isinstance(node, Repeat):
        return _first(node.part, empty)
    if isinstance(node, Chars):
        return []
    if isinstance(node, Choice):
        return [name for part in node.options for name in _first(part, empty)]
    out: list[str] = []
    for part in node.parts:
        out += _first(part, empty)
        if not _may_be_empty(part, empty):
            break
    return out


# ---- llguidance's language


def to_lark(grammar: Grammar, added: Callable[[str, str], tuple[str, str]]) -> str:
    """``grammar`` in Lark's syntax as llguidance reads it. ``added`` writes the rules ``%json``, ``%text``, ``%until``: (options of the rule, body)."""
    writer = _Lark(grammar)
    lines = [f"start: {writer.rule(Ref('root'))}"]
    while writer.waiting:
        name = writer.waiting.pop()
        options, body = added(*grammar.added[name]) if name in grammar.added else ("", writer.rule(grammar.rules[name]))
        lines.append(f"{writer.named(name)}{options}: {body}")
    return "%llguidance {}\n" + "\n".join(lines) + "\n"


class _Lark:
    """Writes rules; ``waiting`` are those that others need and nobody has written."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._sizes: dict[str, int | None] = {}
        self._flat: dict[str, Node] = {}
        self._names: dict[str, str] = {}
        self.waiting: list[str] = []

    def named(self, name: str) -> str:
        """The rule's name in Lark, where case means something."""
        if name not in self._names:
            kind = self._grammar.added.get(name, ("", ""))[0]
            is_lexeme = kind in ("text", "string") or (TOKEN.fullmatch(name) and self._inner(name) is not None)
            self._names[name] = f"{'TOKEN' if is_lexeme else 'rule'}_{len(self._names)}"  # capitals say so
            self.waiting.append(name)
        return self._names[name]

    def rule(self, node: Node) -> str:
        if isinstance(node, Ref) and self._size(node) is None:
            return self.named(node.name)
        if self._size(node) is not None:
            text = to_regex(self._written_out(node))
            return f"/{text}/" if text != "(?:)" else '""'
        if isinstance(node, Choice):
            return f"({' | '.join(map(self.rule, node.options))})"
        if isinstance(node, Repeat):
            most = "" if node.most is None else node.most
            return f"({self.rule(node.part)}){{{node.least},{most}}}"
        assert isinstance(node, Seq)
        return " ".join(self.rule(part) for part in self._joined(node.parts))

    def _inner(self, name: str) -> int | None:
        """The size of a rule's body."""
        self._size(Ref(name))
        return self._sizes[name]

    def _joined(self, parts: tuple[Node, ...]) -> list[Node]:
        """Neighbours that are one lexeme, as one part."""
        out: list[Node] = []
        flat: list[Node] = []
        for part in (*parts, None):
            if part is not None and self._size(part) is not None:
                flat.append(part)
                continue
            together = Seq(tuple(flat))
            out += [together] if flat and self._size(together) is not None else flat
            out += [part] if part is not None else []
            flat = []
        return out

    def _size(self, node: Node) -> int | None:
        """Parts of ``node`` when all rules are written out; None when that never ends, or is too much."""
        if isinstance(node, Ref):
            if node.name not in self._sizes:
                self._sizes[node.name] = None  # what calls itself finds this
                inner = self._grammar.rules.get(node.name)
                self._sizes[node.name] = self._size(inner) if inner is not None else None
            return None if TOKEN.fullmatch(node.name) else self._sizes[node.name]
        if isinstance(node, Chars):
            return 1
        if isinstance(node, Repeat):
            sizes = [self._size(node.part)]
        else:
            sizes = [self._size(part) for part in (node.parts if isinstance(node, Seq) else node.options)]
        total = 1 + sum(size or 0 for size in sizes)
        return None if None in sizes or total > _INLINE else total

    def _written_out(self, node: Node) -> Node:
        if isinstance(node, Ref):
            if node.name not in self._flat:
                self._flat[node.name] = self._written_out(self._grammar.rules[node.name])
            return self._flat[node.name]
        if isinstance(node, Repeat):
            return Repeat(self._written_out(node.part), node.least, node.most)
        if isinstance(node, Seq):
            return Seq(tuple(map(self._written_out, node.parts)))
        return Choice(tuple(map(self._written_out, node.options))) if isinstance(node, Choice) else node


def quoted(text: str) -> str:
    """``text`` as a literal of GBNF."""
    return f'"{"".join(map(_quoted_letter, text))}"'


def _quoted_letter(letter: str) -> str:
    known = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
    return known.get(letter) or (f"\\x{ord(letter):02X}" if letter < " " or letter == "\x7f" else letter)
