"""Who asks: the tenant and key behind a request, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from luthier.core.errors import LuthierError
from luthier.core.key import LOCAL, SCOPES


class ForbiddenError(LuthierError):
    """A known caller who may not do this."""

    http_status = 403
    code = "forbidden"


@dataclass(frozen=True, slots=True)
class Caller:
    """``tenant`` owns what a request leaves behind: traces, cached answers, files. ``key_id`` names a key without giving it away.

    ``models`` are shell patterns of names that may be asked, ``labels`` access labels of its key. A server without keys has one caller, who may do everything.
    """

    tenant: str = LOCAL
    key_id: str = ""
    scopes: frozenset[str] = frozenset(SCOPES)
    models: tuple[str, ...] = ("*",)
    labels: tuple[str, ...] = ()

    def may(self, scope: str) -> bool:
        """Whether ``scope`` is among the caller's."""
        return scope in self.scopes

    def require(self, scope: str) -> None:
        """Raise ForbiddenError unless the caller has ``scope``."""
        if scope not in self.scopes:
            held = ", ".join(sorted(self.scopes)) or "none"
            raise ForbiddenError(f"this needs a key with the scope {scope!r}; the one that came has: {held}")

    def sees(self, model: str) -> bool:
        """Whether the caller may ask ``model``."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)
