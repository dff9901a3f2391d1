"""Rules of a GBNF grammar while it is written, and automata as rules."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from luthier.core.errors import UnsupportedError
from luthier.models.patterns import Chars, chars, others, to_gbnf

State = TypeVar("State", bound=Hashable)

MOST_STATES = 20_000


class Rules:
    """Names for rule bodies, all beginning with ``prefix``; one body has one name.

    A ``token`` is a piece of text that llguidance sees as one lexeme (``gbnf_reader.TOKEN``).
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._names: dict[str, str] = {}
        self._bodies: dict[str, str] = {}
        self._tokens: dict[str, str] = {}

    def add(self, body: str) -> str:
        """The name of a rule with this body."""
        if body not in self._names:
            self.name(self.new(), body)
        return self._names[body]

    def new(self) -> str:
        """A name whose body comes later: for rules that call themselves."""
        name = f"{self._prefix}r{len(self._bodies)}"
        self._bodies[name] = ""
        return name

    def token(self, body: str) -> str:
        """The name of a rule for a piece of text that is seen as a whole."""
        if body not in self._tokens:
            name = self._tokens[body] = f"{self._prefix}token-{len(self._bodies)}"
            self._bodies[name] = body
        return self._tokens[body]

    def name(self, name: str, body: str) -> None:
        """Give ``name`` its body."""
        self._bodies[name] = body
        self._names.setdefault(body, name)

    def text(self, root: str, head: str = "root ::= ") -> str:
        """All rules; the first one, whose beginning is ``head``, is ``root``."""
        return "\n".join([f"{head}{root}", *(f"{name} ::= {body}" for name, body in self._bodies.items())])

    def automaton(
        self,
        start: State,
        edges: Callable[[State], Iterable[tuple[Chars, State]]],
        accepts: Callable[[State], bool],
        write: Callable[[Chars], str] = to_gbnf,
    ) -> str | None:
        """A rule for the texts that lead from ``start`` to a state that accepts; None when there are none. ``write`` writes characters.

        Raises UnsupportedError for more than 20,000 states.
        """
        known: dict[State, dict[State, list[Chars]]] = {}
        waiting = [start]
        while waiting:
            state = waiting.pop()
            if state in known:
                continue
            known[state] = {}
            if len(known) > MOST_STATES:
                raise UnsupportedError(f"the form needs more than {MOST_STATES:,} states")
            for letters, after in edges(state):
                known[state].setdefault(after, []).append(letters)
                waiting.append(after)
        useful = _useful(known, accepts)
        if start not in useful:
            return None
        steps = {
            state: {
                after: chars(*(pair for each in kinds for pair in each.ranges))
                for after, kinds in known[state].items()
                if after in useful
            }
            for state in known
            if state in useful
        }
        alike = _alike(steps, accepts)
        names = {kind: self.new() for kind in dict.fromkeys(alike.values())}
        written: set[int] = set()
        for state, kind in alike.items():
            if kind in written:
                continue
            written.add(kind)
            onward: dict[int, list[Chars]] = {}
            for after, letters in steps[state].items():
                onward.setdefault(alike[after], []).append(letters)
            ends = {alike[after]: not steps[after] for after in steps[state]}
            options = ['""'] if accepts(state) else []
            for after_kind, kinds_of_letters in onward.items():
                letters = chars(*(pair for each in kinds_of_letters for pair in each.ranges))
                options.append(write(letters) + ("" if ends[after_kind] else f" {names[after_kind]}"))
            self.name(names[kind], " | ".join(options))
        return names[alike[start]]


def _alike(steps: dict[State, dict[State, Chars]], accepts: Callable[[State], bool]) -> dict[State, int]:
    """States by number, those from which the same texts follow with one number (Moore 1956)."""
    found = {state: int(accepts(state)) for state in steps}
    count = len(set(found.values()))
    while True:
        numbers: dict[object, int] = {}
        after = {}
        for state, edges in steps.items():
            onward: dict[int, list[tuple[int, int]]] = {}
            for other, letters in edges.items():
                onward.setdefault(found[other], []).extend(letters.ranges)
            merged = frozenset((kind, chars(*ranges).ranges) for kind, ranges in onward.items())
            after[state] = numbers.setdefault((found[state], merged), len(numbers))
        if len(numbers) == count:
            return after
        found, count = after, len(numbers)


def _useful(known: dict[State, dict[State, list[Chars]]], accepts: Callable[[State], bool]) -> set[State]:
    """States from which one that accepts can be reached."""
    before: dict[State, list[State]] = {}
    for state, after in known.items():
        for one in after:
            before.setdefault(one, []).append(state)
    waiting = [state for state in known if accepts(state)]
    found: set[State] = set()
    while waiting:
        state = waiting.pop()
        if state not in found:
            found.add(state)
            waiting += before.get(state, [])
    return found


# ---- texts


def free_text(rules: Rules, mark: str, *, until: bool) -> str:
    """A rule for any text that neither holds ``mark`` nor begins as JSON does (an object or a list of them); ``until``: with the mark after it.

    A state is how the text began and how much of the mark was just read (Knuth, Morris and Pratt 1977).
    """
    spaces, opened, plain = 0, 1, 2
    codes = {ord(letter) for letter in (*mark, "[", "{", *" \t\n\r\f\v")}
    kinds = [chars((code, code)) for code in sorted(codes)]
    kinds.append(others(chars(*((code, code) for code in codes))))

    def began(before: int, letter: str | None) -> int | None:
        if before == plain or letter is None:
            return plain
        if letter == "{":
            return None
        if letter.isspace():
            return before
        return opened if letter == "[" and before == spaces else plain

    def edges(state: tuple[int, int]) -> list[tuple[Chars, tuple[int, int]]]:
        out = []
        for kind in kinds:
            single = kind.ranges and kind is not kinds[-1]
            letter = chr(kind.ranges[0][0]) if single else None
            beginning = began(state[0], letter)
            read = _overlap(mark, mark[: state[1]] + letter) if letter is not None else 0
            if beginning is None or state[1] == len(mark) > 0 or (read == len(mark) > 0 and not until):
                continue
            out.append((kind, (beginning, read)))
        return out

    made = rules.automaton((spaces, 0), edges, lambda state: not until or state[1] == len(mark))
    return made or '""'


def _overlap(mark: str, read: str) -> int:
    """How much of ``mark`` the end of ``read`` is."""
    return next((size for size in range(min(len(mark), len(read)), 0, -1) if read.endswith(mark[:size])), 0)
