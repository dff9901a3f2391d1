"""Rules of a GBNF grammar while it is written, and automata as rules."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

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
        machine = _Machine(start, edges, accepts)
        useful = machine.useful()
        if 0 not in useful:
            return None
        alike = machine.alike(useful)
        names = {kind: self.new() for kind in dict.fromkeys(alike.values())}
        for kind, state in {kind: state for state, kind in alike.items()}.items():
            onward: dict[int, list[Chars]] = {}
            last: set[int] = set()
            for letters, after in machine.steps[state]:
                if after in useful:
                    onward.setdefault(alike[after], []).append(machine.letters[letters])
                    last |= set() if any(later in useful for _, later in machine.steps[after]) else {alike[after]}
            options = ['""'] if machine.ends[state] else []
            for after_kind, kinds in onward.items():
                text = write(chars(*(pair for each in kinds for pair in each.ranges)))
                options.append(text if after_kind in last else f"{text} {names[after_kind]}")
            self.name(names[kind], " | ".join(options))
        return names[alike[0]]


class _Machine(Generic[State]):
    """States and their steps by number; the start is 0. ``steps``: (letters, state after them); ``ends``: which states accept."""

    def __init__(
        self,
        start: State,
        edges: Callable[[State], Iterable[tuple[Chars, State]]],
        accepts: Callable[[State], bool],
    ) -> None:
        numbers: dict[State, int] = {start: 0}
        kinds: dict[Chars, int] = {}
        waiting = [start]
        self.steps: list[list[tuple[int, int]]] = []
        self.ends: list[bool] = []
        for state in waiting:  # which grows
            out = []
            for letters, after in edges(state):
                number = numbers.setdefault(after, len(numbers))
                if number == len(waiting):
                    waiting.append(after)
                out.append((kinds.setdefault(letters, len(kinds)), number))
            if len(numbers) > MOST_STATES:
                raise UnsupportedError(f"the form needs more than {MOST_STATES:,} states")
            self.steps.append(out)
            self.ends.append(accepts(state))
        self.letters = list(kinds)

    def useful(self) -> set[int]:
        """States from which one that accepts can be reached."""
        before: list[list[int]] = [[] for _ in self.steps]
        for state, steps in enumerate(self.steps):
            for _, after in steps:
                before[after].append(state)
        waiting = [state for state, end in enumerate(self.ends) if end]
        found: set[int] = set()
        while waiting:
            state = waiting.pop()
            if state not in found:
                found.add(state)
                waiting += before[state]
        return found

    def alike(self, useful: set[int]) -> dict[int, int]:
        """A number for each useful state, the same for those from which the same texts follow (Moore 1956)."""
        steps = {
            state: [(letters, after) for letters, after in self.steps[state] if after in useful]
            for state in sorted(useful)
        }
        found = {state: int(self.ends[state]) for state in steps}
        count = len(set(found.values()))
        while True:
            numbers: dict[tuple[int, frozenset[tuple[int, int]]], int] = {}
            after = {
                state: numbers.setdefault(
                    (found[state], frozenset((letters, found[then]) for letters, then in out)), len(numbers)
                )
                for state, out in steps.items()
            }
            if len(numbers) == count:
                return after
            found, count = after, len(numbers)


def can_end(
    start: State, edges: Callable[[State], Iterable[tuple[Chars, State]]], accepts: Callable[[State], bool]
) -> bool:
    """Whether a state that accepts can be reached. Raises UnsupportedError when that cannot be told from 20,000 states."""
    seen, waiting = {start}, [start]
    while waiting:
        state = waiting.pop()
        if accepts(state):
            return True
        new = {after for _, after in edges(state)} - seen
        seen |= new
        waiting += new
        if len(seen) > MOST_STATES:
            raise UnsupportedError(f"the form needs more than {MOST_STATES:,} states")
    return False


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
