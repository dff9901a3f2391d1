from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.core.errors import DataError, InputError
from luthier.tasks import _parts
from luthier.tasks._parts import has_part, pick_subjects, rows_of_part


def put(path: Path, *values: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f'{{"n": {value}}}\n' for value in values))
    return path


def numbers(data: Path, part: str, **options: object) -> list[int]:
    return [row["n"] for _, _, row in rows_of_part(str(data), part, **options)]  # type: ignore[index,arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "validation.jsonl",
        "valid.jsonl",
        "hellaswag_val.jsonl",
        "dev.jsonl",
        "ARC-Easy-Dev.jsonl",
        "data/validation.jsonl",
    ],
)
def test_names_under_which_a_part_is_published(tmp_path: Path, name: str) -> None:
    put(tmp_path / "train.jsonl", 0)
    put(tmp_path / name, 1, 2)
    assert numbers(tmp_path, "validation") == [1, 2]
    assert has_part(str(tmp_path), "validation") and not has_part(str(tmp_path), "test")


def test_numbered_pieces_are_read_in_order_and_the_exact_name_wins(tmp_path: Path) -> None:
    put(tmp_path / "main" / "test-00001-of-00002.jsonl", 2)
    put(tmp_path / "main" / "test-00000-of-00002.jsonl", 1)
    assert numbers(tmp_path, "test", config="main") == [1, 2]
    put(tmp_path / "main" / "test.jsonl", 9)
    put(tmp_path / "main" / "test_unanswerable.jsonl", 8)
    assert numbers(tmp_path, "test", config="main") == [9]


def test_a_file_is_the_part_itself(tmp_path: Path) -> None:
    file = put(tmp_path / "any.jsonl", 5)
    assert numbers(file, "test") == numbers(file, "validation") == [5]
    assert not has_part(str(file), "test")


def test_subjects_come_from_folders_and_tables(tmp_path: Path) -> None:
    put(tmp_path / "arts" / "test.jsonl", 1)
    put(tmp_path / "law" / "test.jsonl", 2)
    put(tmp_path / "cooking" / "test.jsonl", 3)
    found = [(row["n"], row["subject"]) for _, _, row in rows_of_part(str(tmp_path), "test", subjects=("law", "arts"))]  # type: ignore[index]
    assert found == [(2, "law"), (1, "arts")]
    put(tmp_path / "val" / "law_val.jsonl", 4)
    assert [row["subject"] for _, _, row in rows_of_part(str(tmp_path), "val")] == ["law"]  # type: ignore[index]


def test_what_cannot_be_found_or_told_apart(tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl", 1)
    with pytest.raises(DataError, match=r"has no test file; it holds: train\.jsonl") as raised:
        numbers(tmp_path, "test")
    assert "test.jsonl" in str(raised.value.hint)
    put(tmp_path / "a_test.jsonl", 1)
    put(tmp_path / "b_test.jsonl", 1)
    with pytest.raises(DataError, match=r"several files could be test: a_test\.jsonl, b_test\.jsonl"):
        numbers(tmp_path, "test")
    with pytest.raises(DataError, match="no such file"):
        numbers(tmp_path / "nowhere", "test")
    with pytest.raises(InputError, match="Did you mean 'law'"):
        pick_subjects(["laws"], ["law", "arts"], "x")


@pytest.mark.parametrize(
    ("data", "options", "asked"),
    [
        ("hub:org/set", {}, ["hub:org/set:test"]),
        ("hub:org/set", {"config": "main"}, ["hub:org/set/main:test"]),
        ("hub:org/set/other", {"config": "main"}, ["hub:org/set/other:test"]),
        ("hub:org/set:extra", {}, ["hub:org/set:extra"]),
        ("hub:org/set", {"subjects": ("a", "b")}, ["hub:org/set/a:test", "hub:org/set/b:test"]),
        ("hub:org/set", {"subjects": ("a", "b"), "config": "all"}, ["hub:org/set/all:test"]),
    ],
)
def test_names_on_the_hub(
    monkeypatch: pytest.MonkeyPatch, data: str, options: dict[str, object], asked: list[str]
) -> None:
    heard: list[str] = []

    def rows(name: str) -> Iterator[tuple[int, dict[str, int]]]:
        heard.append(name)
        yield 1, {"n": 1}

    monkeypatch.setattr(_parts, "hub_rows", rows)
    list(rows_of_part(data, "test", **options))  # type: ignore[arg-type]
    assert heard == asked and not has_part(data, "test")
