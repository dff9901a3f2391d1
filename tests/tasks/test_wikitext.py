from __future__ import annotations

from pathlib import Path

from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "wikitext"


def test_pages_are_put_together_and_counted_as_published(tmp_path: Path) -> None:
    first, second = asked(tmp_path)
    assert first.raw == ("",)
    assert first.target == " = Bread =\n\nBread's crust, baked at 200°C, is brown.\n"
    assert second.target == "Two-part (a) 1,000 ."
    assert first.references[-1] == " = Bread = \n \n Bread 's crust , baked at 200 ° C , is brown . \n"
