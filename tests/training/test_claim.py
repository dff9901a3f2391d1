"""One tuning of a name at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from luthier.core.errors import ConflictError
from luthier.store.database import open_store
from luthier.training.claim import claim


def test_a_second_holder_is_refused_with_the_first_ones_pid_and_may_come_after_it(home: Path) -> None:
    store = open_store()
    with claim(store, "router"):
        with (
            pytest.raises(ConflictError, match=rf"'router' is being tuned by process {os.getpid()}"),
            claim(store, "router"),
        ):
            pass
        with claim(store, "other"):
            pass
    with claim(store, "router"):
        pass


def test_an_error_inside_frees_the_name(home: Path) -> None:
    store = open_store()
    with pytest.raises(ZeroDivisionError), claim(store, "router"):
        raise ZeroDivisionError
    with claim(store, "router"):
        pass
