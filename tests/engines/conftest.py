from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engines.sharp import decoder

from luthier.core.engine import Engine
from luthier.models.pull import pull


@pytest.fixture(scope="session")
def sharp_path(tiny_decoder_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder(tiny_decoder_path, tmp_path_factory.mktemp("sharp"))


@pytest.fixture
def sharp(home: Path, sharp_path: Path) -> str:
    return pull(f"file:{sharp_path}", alias="sharp").name


@pytest.fixture
def opened() -> Iterator[list[Engine]]:
    """Engines that are closed at the end."""
    engines: list[Engine] = []
    yield engines
    for engine in engines:
        engine.close()
