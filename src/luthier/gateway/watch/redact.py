"""What must not be kept is taken out of traces before they are stored, and out of what goes elsewhere with them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import regex

from luthier.core.errors import InputError
from luthier.core.trace import Trace
from luthier.data.pii import KEPT, KINDS, find, redact, scan

RULES = ("none", "pii", "all")
MATCH_TIMEOUT_S = 0.25
SECRETS = frozenset({"SECRET"})
LOST = "[REDACTED: the text could not be checked]"
LONGEST_DATA_URL = 2048
WINDOW = 8192

_REMEMBERED = (
    4096  # characters of the longest text whose result is remembered: prompts of applications come again and again
)
_NAMES = frozenset({"role", "type", "id", "tool_call_id"})

logger = logging.getLogger("luthier.gateway")


class Redaction:
    """Takes out what ``rule`` names: ``pii`` (personal data by form), ``all`` (every text; its length stays), ``none``, or regular expressions.

    Keys, tokens and passwords are taken out under every rule, and so are the bytes of images. A text that cannot be checked (an expression
    that runs too long on it) is not kept. Raises InputError for an expression that is none.
    """

    def __init__(self, rule: str | Sequence[str] = "none", *, keep_content: bool = True) -> None:
        self.rule = rule
        self.keep_content = keep_content
        try:
            self._patterns = () if isinstance(rule, str) else tuple(regex.compile(each) for each in rule)
        except regex.error as error:
            raise InputError(f"redact holds a regular expression that is none: {error}") from error
        self._remembered = lru_cache(maxsize=1024)(self._checked)

    def text(self, text: str) -> str:
        """``text`` as it may be kept."""
        if not text:
            return text
        if self.rule == "all":
            return f"[REDACTED: {len(text)} characters]"
        return self._remembered(text) if len(text) <= _REMEMBERED else self._checked(text)

    def name(self, name: str) -> str:
        """What a client calls its user or session, as it may be kept: what holds personal data becomes a digest, so that one stays one."""
        if not name or (self.rule != "all" and self.text(name) == name):
            return name
        return f"[REDACTED {hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}]"

    def trace(self, trace: Trace) -> Trace:
        """``trace`` as it may be kept."""
        details: dict[str, Any] = {name: self._value(said, ours=True) for name, said in trace.details.items()}
        if not self.keep_content:
            details.pop("tool_calls", None)
        parameters = {name: self._value(value) for name, value in trace.parameters.items()}
        if "user" in parameters:
            parameters["user"] = self.name(str(trace.parameters["user"]))
        return replace(
            trace,
            messages=tuple(self._value(dict(each)) for each in trace.messages) if self.keep_content else (),
            answer=self.text(trace.answer) if self.keep_content else "",
            error=self._own(trace.error),
            session=self.name(trace.session),
            parameters=parameters,
            details=details,
        )

    def _value(self, value: Any, *, ours: bool = False) -> Any:
        """A value with its texts as they may be kept; ``ours``: words of the gateway, of which ``all`` takes only what a client may have said."""
        if isinstance(value, str):
            if value.startswith("data:") and len(value) > LONGEST_DATA_URL:
                return _described(value)
            return self._own(value) if ours else self.text(value)
        if isinstance(value, Mapping):
            return {key: each if key in _NAMES else self._value(each, ours=ours) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(each, ours=ours) for each in value]
        return value

    def _own(self, said: str) -> str:
        """What the gateway said. It may quote a client: under ``all`` only what reads like a name stays."""
        if self.rule == "all" and (len(said) > 64 or not said.isprintable() or " " in said):
            return self.text(said)
        return said if self.rule == "all" else self.text(said)

    def _checked(self, text: str) -> str:
        try:
            out = text
            if self.rule == "pii" or may_hold_secret(text):
                out = redact_long(text, frozenset(KINDS) if self.rule == "pii" else SECRETS)
            for pattern in self._patterns:
                out = pattern.sub("[REDACTED]", out, timeout=MATCH_TIMEOUT_S, concurrent=True)
        except TimeoutError:
            logger.warning(
                "a text was not kept: an expression of watch.redact took longer than %g s on it", MATCH_TIMEOUT_S
            )
            return LOST
        return out


def redact_long(text: str, kinds: frozenset[str]) -> str:
    """What ``data.pii.redact`` gives, a window at a time: an expression over megabytes would keep the interpreter from everything else."""
    if len(text) <= WINDOW:
        return redact(text, kinds)
    out: list[str] = []
    cut = end = 0
    while end < len(text):
        end = min(end + WINDOW, len(text))
        base = max(0, cut - KEPT)
        window = text[base:end]
        if end < len(text):
            spans, settled = scan(window, cut - base, kinds)
            settled += base
        else:
            spans, settled = [span for span in find(window, kinds) if span.start >= cut - base], end
        for span in spans:
            out += [text[cut : base + span.start], f"[{span.kind}]"]
            cut = base + span.end
        out.append(text[cut:settled])
        cut = max(cut, settled)
    return "".join(out)


_SIGNS = (
    "://", "-----BEGIN", "=", "sk-", "luthier-", "AKI", "ASIA", "ABIA", "ACCA", "AIza", "ya29.", "gh", "glpat", "xox", "xapp", "hf_",
    "npm_", "pypi-", "dop_v1", "shp", "k_live", "k_test", "whsec", "SG.", "LTAI", "eyJ",
)  # fmt: skip
_WORDS = (
    "passw",
    "passphrase",
    "passcode",
    "pwd",
    "secret",
    "token",
    "key",
    "bearer",
    "authorization",
    "auth",
    "credential",
)


def may_hold_secret(text: str) -> bool:
    """False for a text that certainly holds no key, token or password: a tenth of the time that looking for them takes."""
    if not text.isascii():
        return True
    if any(sign in text for sign in _SIGNS):
        return True
    lower = text.lower()
    return any(word in lower for word in _WORDS)


def _described(url: str) -> str:
    """A data URL without its bytes."""
    head, _, data = url.partition(",")
    return f"{head[:100]},[{len(data)} characters, sha256 {hashlib.sha256(data.encode()).hexdigest()}]"
