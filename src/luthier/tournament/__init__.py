"""Tournaments: entrants, board, verdict, promotion. Calling this package runs one, so that ``luthier.tournament(...)`` is the verb.

A package and a verb of one name share one attribute of ``luthier``, and Python gives it to the package on import.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """The package, callable."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See ``luthier.tournament.tournament.tournament``."""
        from luthier.tournament.tournament import tournament

        return tournament(*args, **kwargs)


sys.modules[__name__].__class__ = _Verb
