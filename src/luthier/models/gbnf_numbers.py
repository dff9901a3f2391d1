"""Numbers within bounds, as an automaton over their digits."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from luthier.models.gbnf_rules import Rules
from luthier.models.patterns import Chars, chars

WHOLE_DIGITS, FRACTION_DIGITS = 15, 9
"""Most digits of a number before and after the point: small models write digits without end, and no more of them are the same for every reader."""


@dataclass(frozen=True, slots=True)
class _Bound:
    """A bound of a number without a sign: the digits before and after the point."""

    whole: str
    fraction: str
    included: bool

    @staticmethod
    def of(value: Decimal, included: bool) -> _Bound:
        whole, _, fraction = f"{abs(value):f}".partition(".")
        return _Bound(whole.lstrip("0") or "0", fraction.rstrip("0"), included)


@dataclass(frozen=True, slots=True)
class _Reading:
    """How far a number is read: phase (``sign``, ``zero``, ``whole``, ``point``, ``fraction``), digits in it, how it compares to both bounds, remainder."""

    phase: str
    digits: int = 0
    low: int = 0
    high: int = 0
    rest: int = 0


def number(
    rules: Rules,
    *,
    least: Decimal | None,
    most: Decimal | None,
    above: bool = False,
    below: bool = False,
    whole: bool = False,
    multiple: Decimal | None = None,
) -> str | None:
    """A rule for the numbers from ``least`` to ``most`` (``above``, ``below``: without the bound itself), whole ones or multiples of one. None
    when there are none. Digits are bounded; exponents stand only where there are no bounds."""
    if least is None and most is None and multiple is None:
        rest = "" if whole else f' ("." [0-9]{{1,{FRACTION_DIGITS}}})? ([eE] [-+]? [0-9]{{1,2}})?'
        return rules.token(f'"-"? ("0" | [1-9] [0-9]{{0,{WHOLE_DIGITS - 1}}}){rest}')
    options: list[tuple[str, _Bound | None, _Bound | None]] = []
    if most is None or most > 0 or (most == 0 and not below):
        low = None if least is None or least < 0 else _Bound.of(least, not above)
        high = None if most is None else _Bound.of(most, not below)
        options.append(("", low, high))
    if least is None or least < 0:
        low = _Bound.of(Decimal(0), included=False) if most is None or most >= 0 else _Bound.of(most, not below)
        high = None if least is None else _Bound.of(least, not above)
        options.append(('"-" ', low, high))
    made = [(sign, _Magnitude(low, high, whole, multiple).rule(rules)) for sign, low, high in options]
    found = [f"{sign}{rule}" for sign, rule in made if rule is not None]
    return rules.token(f"({' | '.join(found)})") if found else None


_SIGNS = {letter: chars((ord(letter), ord(letter))) for letter in "0123456789."}


class _Magnitude:
    """Numbers without a sign between two bounds, as an automaton."""

    def __init__(self, low: _Bound | None, high: _Bound | None, whole: bool, multiple: Decimal | None) -> None:
        self._low, self._high = low, high
        scale = max(0, -int(multiple.normalize().as_tuple().exponent)) if multiple is not None else 0
        self._step = int(multiple.scaleb(scale)) if multiple is not None else 1
        self._scale = scale
        fractions = [len(bound.fraction) for bound in (low, high) if bound is not None]
        self._most_whole = (
            len(high.whole) if high is not None else max(WHOLE_DIGITS, len(low.whole) if low is not None else 0)
        )
        self._most_fraction = (
            0 if whole or (multiple is not None and not scale) else scale or max([FRACTION_DIGITS, *fractions])
        )

    def rule(self, rules: Rules) -> str | None:
        return rules.automaton(_Reading("sign"), self._edges, self._accepts)

    def _edges(self, at: _Reading) -> list[tuple[Chars, _Reading]]:
        out = []
        for digit in "0123456789":
            if at.phase == "sign":
                out.append((digit, self._whole(_Reading("zero" if digit == "0" else "whole"), digit)))
            elif at.phase == "whole" and at.digits < self._most_whole:
                out.append((digit, self._whole(at, digit)))
            elif at.phase in ("point", "fraction") and at.digits < self._most_fraction:
                out.append((digit, self._fraction(at, digit)))
        if at.phase in ("zero", "whole") and self._most_fraction:
            low, high = self._ended(at)
            out.append((".", _Reading("point", 0, low, high, at.rest)))
        return [(_SIGNS[letter], after) for letter, after in out]

    def _whole(self, at: _Reading, digit: str) -> _Reading:
        low, high = (
            _compared(now, digit, bound.whole, at.digits) if bound is not None else 0
            for now, bound in ((at.low, self._low), (at.high, self._high))
        )
        return _Reading(at.phase, at.digits + 1, low, high, (10 * at.rest + int(digit)) % self._step)

    def _fraction(self, at: _Reading, digit: str) -> _Reading:
        low, high = (
            now or _compared(0, digit, bound.fraction + "0" * (at.digits + 1), at.digits) if bound is not None else 0
            for now, bound in ((at.low, self._low), (at.high, self._high))
        )
        return _Reading("fraction", at.digits + 1, low, high, (10 * at.rest + int(digit)) % self._step)

    def _ended(self, at: _Reading) -> tuple[int, int]:
        """How the whole part compares to those of the bounds: one with fewer digits is smaller."""
        low, high = (
            (-1 if at.digits < len(bound.whole) else now) if bound is not None else 0
            for now, bound in ((at.low, self._low), (at.high, self._high))
        )
        return low, high

    def _accepts(self, at: _Reading) -> bool:
        if at.phase in ("sign", "point"):
            return False
        read = at.digits if at.phase == "fraction" else 0
        low, high = (at.low, at.high) if at.phase == "fraction" else self._ended(at)
        if self._low is not None:
            low = low or (-1 if read < len(self._low.fraction) else 0)
            if low < 0 or (low == 0 and not self._low.included):
                return False
        if self._high is not None:
            high = high or (-1 if read < len(self._high.fraction) else 0)
            if high > 0 or (high == 0 and not self._high.included):
                return False
        return at.rest * 10 ** (self._scale - read) % self._step == 0 if read <= self._scale else self._step == 1


def _compared(now: int, digit: str, bound: str, at: int) -> int:
    """How digits compare to a bound's when one more is read."""
    if at >= len(bound):
        return 1
    return now or (digit > bound[at]) - (digit < bound[at])
