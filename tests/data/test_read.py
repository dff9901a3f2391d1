from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.core.errors import DataError, InputError, MissingExtraError
from luthier.data.fields import RowError
from luthier.data.files import rows_of
from luthier.data.read import convert_rows, examples_from_rows, read, write


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_a_labelled_file(tmp_path: Path) -> None:
    dataset = read(jsonl(tmp_path / "tickets.jsonl", {"text": "a", "label": "x"}, {"text": "b", "label": 2}))
    assert (dataset.name, dataset.kind, dataset.format) == ("tickets", "labelled", "text_label")
    assert [(e.text, e.target) for e in dataset.examples] == [("a", "x"), ("b", "2")]
    assert dataset.examples[1].source == f"{tmp_path / 'tickets.jsonl'}:2"
    assert dataset.labels == ("2", "x")


def test_luthier_read_is_this_function() -> None:
    assert luthier.read is read


def test_ids_come_from_content_and_are_unique(tmp_path: Path) -> None:
    row, other = {"text": "a", "label": "x"}, {"text": "b", "label": "x"}
    first = read(jsonl(tmp_path / "a.jsonl", row, row, other, row))
    ids = [e.id for e in first.examples]
    assert len(ids[0]) == 16 and int(ids[0], 16) >= 0
    assert ids == [ids[0], f"{ids[0]}-2", ids[2], f"{ids[0]}-3"]
    (tmp_path / "b.csv").write_text("label,text\nx,b\n")
    assert read(tmp_path / "b.csv").examples[0].id == ids[2]
    assert read(jsonl(tmp_path / "c.jsonl", other | {"source": "web"})).examples[0].id != ids[2]


def test_every_broken_row_is_named_and_counted(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl", {"text": "a", "label": "x"}, {"text": ""}, "{", {"text": "", "label": "x"}, {"label": "x"}
    )
    with pytest.raises(DataError) as raised:
        read(path)
    assert str(raised.value) == "\n".join(
        [
            f"{path}: 4 of 5 rows cannot be used",
            f"  {path}:2: text is empty",
            f"  {path}:3: invalid JSON at column 2: Expecting property name enclosed in double quotes",
            f"  {path}:4: text is empty",
            f"  {path}:5: text is missing; line 1 has it (fields here: label)",
            "  correct them, or go on without them: --skip-bad (skip_bad=True)",
        ]
    )
    assert raised.value.exit_code == 2
    dataset = read(path, skip_bad=True)
    assert len(dataset) == 1
    assert [p.line for p in dataset.problems] == [2, 3, 4, 5]


def test_a_long_list_of_broken_rows_is_cut_and_counted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "a", "label": "x"}, *[{"text": "", "label": "x"}] * 1234)
    with pytest.raises(DataError, match=r"1,234 of 1,235 rows cannot be used(.|\n)*\.\.\. and 1,214 more") as raised:
        read(path)
    assert str(raised.value).count("text is empty") == 20


def test_no_usable_row_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row can be used"):
        read(jsonl(tmp_path / "a.jsonl", {"text": "", "label": "x"}), skip_bad=True)
    with pytest.raises(DataError, match="no row can be used"):
        read(jsonl(tmp_path / "a.jsonl", "{"), skip_bad=True)


def test_a_label_that_is_missing_in_the_first_row_does_not_hide_the_others(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b", "label": "x"}, {"text": "c", "label": "y"})
    with pytest.raises(DataError, match=r"a\.jsonl:1: label is missing; line 2 has it"):
        read(path)
    assert read(path, skip_bad=True).kind == "labelled"


def test_two_formats_in_one_file_name_both_lines(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl", {"text": "a", "label": "x"}, {"text": "b", "label": "x"}, {"question": "q", "answer": "a"}
    )
    with pytest.raises(DataError, match=r":3: this row is question_answer, but most rows, as line 1, are text_label"):
        read(path)
    assert len(read(path, skip_bad=True)) == 2


def test_columns_stand_for_known_fields(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl", {"body": "a", "topic": "x", "label": "ignored"}, {"body": "b", "topic": "y", "label": ""}
    )
    dataset = read(path, columns={"text": "body", "label": "topic"})
    assert [(e.text, e.target) for e in dataset.examples] == [("a", "x"), ("b", "y")]
    with pytest.raises(DataError, match=r"no column 'bodi'\. Did you mean 'body'\?"):
        read(path, columns={"text": "bodi"})
    with pytest.raises(
        InputError, match=r"columns: 'txt' is not a field that Luthier reads\. Did you mean 'text' or 'context'\?"
    ):
        read(path, columns={"txt": "body"})


def test_fields_in_no_known_format(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "q", "sql": "SELECT 1"})
    with pytest.raises(
        DataError, match=r"its fields \(question, sql\) are no known format(.|\n)*--column answer=FIELD"
    ):
        read(path)
    assert read(path, columns={"answer": "sql"}).examples[0].target == "SELECT 1"


def test_limit_counts_good_rows(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "a"}, "{", {"text": "b"}, {"text": "c"}, "{")
    dataset = read(path, limit=2, skip_bad=True)
    assert [e.text for e in dataset.examples] == ["a", "b"]
    assert len(dataset.problems) == 1
    with pytest.raises(InputError, match="limit must be at least 1; got 0"):
        read(path, limit=0)


def test_blank_and_header_only_files_have_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    (tmp_path / "a.csv").write_text("text,label\n")
    (tmp_path / "a.json").write_text("[]")
    for name in ("a.jsonl", "a.csv", "a.json"):
        with pytest.raises(DataError, match="no rows"):
            read(tmp_path / name)


def test_rows_without_a_file() -> None:
    dataset = examples_from_rows([("feedback", 1, {"text": "a", "label": "x"})], name="feedback")
    assert dataset.examples[0].source == "feedback:1"


def test_written_and_read_again_is_the_same(tmp_path: Path) -> None:
    rows = [
        {"instruction": "q", "input": "i", "output": "a", "source": "web"},
        {"instruction": "r", "output": "b\u2028c"},
    ]
    dataset = read(jsonl(tmp_path / "a.jsonl", *rows))
    again = read(write(dataset, tmp_path / "new" / "b.jsonl"))
    assert again.digest == dataset.digest
    assert again.format == "messages"
    assert [e.messages for e in again.examples] == [e.messages for e in dataset.examples]


# ---- hub


def test_hub_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'luthier\[hub\]'"):
        read("hub:org/name")


def test_hub_rows_with_class_names(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    asked: list[Any] = []

    def load_dataset(*names: str, split: str) -> Any:
        asked.append((*names, split))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    dataset = read("hub:org/name")
    assert [(e.text, e.target) for e in dataset.examples] == [("a", "pos"), ("b", "neg")]
    assert (dataset.name, dataset.examples[0].source) == ("org/name", "hub:org/name:1")
    read("hub:org/name/plain:test")
    assert asked == [("org/name", "train"), ("org/name", "plain", "test")]
    with pytest.raises(DataError, match="is written hub:org/name"):
        read("hub:name")


def test_hub_that_cannot_be_reached_or_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    from luthier.core.errors import OfflineError

    def fails(error: Exception) -> Any:
        def load_dataset(*names: str, split: str) -> Any:
            raise error

        return load_dataset

    monkeypatch.setattr(datasets, "load_dataset", fails(ConnectionError("no route")))
    with pytest.raises(OfflineError, match="cannot reach the hub"):
        read("hub:org/name")
    monkeypatch.setattr(datasets, "load_dataset", fails(datasets.exceptions.DatasetNotFoundError("nothing there")))
    with pytest.raises(DataError, match="nothing there"):
        read("hub:org/name")


def test_rows_in_a_form_of_their_own(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "own.jsonl", {"n": 1}, {"n": "x"}, "{", {"n": 3})
    rows = [(str(path), line, row) for line, row in rows_of(path)]

    def number(row: Mapping[str, Any]) -> int:
        if not isinstance(row["n"], int):
            raise RowError("n must be a number")
        return int(row["n"])

    good, problems = convert_rows(rows, number, skip_bad=True)
    assert [(Path(source).name, value) for source, value in good] == [("own.jsonl:1", 1), ("own.jsonl:4", 3)]
    assert [problem.line for problem in problems] == [2, 3]
    assert convert_rows(rows, number, limit=1) == ([(f"{path}:1", 1)], [])
    with pytest.raises(DataError, match=r"2 of 4 rows cannot be used(.|\n)*own\.jsonl:2: n must be a number"):
        convert_rows(rows, number)
    with pytest.raises(DataError, match="no rows"):
        convert_rows([], number)


def test_pairs_and_scored_texts_are_read_by_column_and_written_back(tmp_path: Path) -> None:
    squad = tmp_path / "squad.jsonl"
    squad.write_text(json.dumps({"question": "q", "context": "c", "answers": ["a"]}) + "\n", encoding="utf-8")
    found = read(squad, columns={"anchor": "question", "positive": "context"})
    assert (found.kind, found.examples[0].text, found.examples[0].positives) == ("pairs", "q", ("c",))
    for rows in (
        [{"query": "q", "pos": ["a", "b"], "neg": ["c"]}, {"query": "q", "pos": ["a", "b"], "neg": []}],
        [{"sentence1": "q", "sentence2": "a", "label": n} for n in (0, 0.5, True)],
    ):
        first = examples_from_rows((("f", n, row) for n, row in enumerate(rows, 1)), name="d")
        again = read(write(first, tmp_path / "again.jsonl"))
        assert [e.id for e in again.examples] == [e.id for e in first.examples]
        assert len({e.id for e in first.examples}) == len(rows)


def test_a_folder_of_texts(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    (folder / "more").mkdir(parents=True)
    (folder / "b.txt").write_text("The second book.\n")
    (folder / "a.md").write_text("# The first\n")
    (folder / "more" / "c.txt").write_text("The third.\n")
    dataset = read(folder)
    assert (dataset.name, dataset.kind) == ("books", "text")
    assert [example.text for example in dataset.examples] == ["# The first\n", "The second book.\n", "The third.\n"]
    assert dataset.examples[2].source == f"{folder / 'more' / 'c.txt'}:1"
    (folder / "bad.txt").write_bytes(b"caf\xe9")
    (folder / "empty.txt").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"books: 2 of 5 rows cannot be used\n.*bad\.txt:1: not UTF-8(.|\n)*empty\.txt:1: is empty"
    ):
        read(folder)
    assert len(read(folder, skip_bad=True)) == 3
    (folder / "rows.jsonl").write_text('{"text": "a"}')
    with pytest.raises(DataError, match="only when all its data files are plain text"):
        read(folder)
