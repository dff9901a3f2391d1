"""A stream's YAML: what its items may be, what they share, and what does not go together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.training.test_tune import write_tickets

from luthier.core.errors import DataError, InputError
from luthier.tournament.stream import read_stream

MORE = {"billing": "refund deposit pay invoice card", "lessons": "violin piano teacher song class"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tickets(tmp_path / "autumn.jsonl", 12)
    (tmp_path / "winter").mkdir()
    write_tickets(tmp_path / "winter" / "train.jsonl", 10, MORE)
    write_tickets(tmp_path / "winter" / "test.jsonl", 4, MORE)
    (tmp_path / "spring.yaml").write_text("data: {path: autumn.jsonl, split: {seed: 5}}\n")
    return tmp_path


def told(folder: Path, stream: Any, **more: Any) -> dict[str, Any]:
    def absolute(item: Any) -> Any:
        if isinstance(item, str):
            return str(folder / item)
        return {**item, "data": {k: str(folder / v) if isinstance(v, str) else v for k, v in item["data"].items()}}

    return {"model": "tiny", "method": "lora", "stream": [absolute(item) for item in stream], **more}


WINTER: Mapping[str, Any] = {"data": {"train": "winter/train.jsonl", "test": "winter/test.jsonl"}}


def test_items_and_what_they_share(folder: Path) -> None:
    stream = read_stream(
        told(folder, ["autumn.jsonl", WINTER, "spring.yaml"], data={"limit": 16, "overlong": "truncate"})
    )
    assert [task.name for task in stream.tasks] == ["autumn", "winter", "spring"]
    assert all(len(task.splits.train) <= 16 for task in stream.tasks)
    assert [stream.labels(step) for step in range(3)] == [
        ("billing", "delivery"),
        ("billing", "delivery", "lessons"),
        ("billing", "delivery", "lessons"),
    ]
    assert stream.asked(0, 2).labels == stream.prompt(2).labels == stream.labels(2)
    assert stream.asked(0, 2).splits is stream.tasks[0].splits
    assert stream.model(1) == f"{stream.name}-2-winter" and stream.name.startswith("tiny-stream-")
    first, second = stream.tuning(0, None), stream.tuning(1, "earlier")
    assert first["model"] == "tiny" and second["model"] == {"base": "earlier"}
    assert first["data"] == {"overlong": "truncate"} and "objective" not in first


def test_files_are_relative_to_the_yaml(folder: Path) -> None:
    path = folder / "stream.yaml"
    path.write_text(
        "model: tiny\nmethod: lora\nprompt: {instruction: 'One of {labels}'}\n"
        "stream: [autumn.jsonl, spring.yaml, {data: {train: winter/train.jsonl, test: winter/test.jsonl}}]\n"
    )
    stream = read_stream(path, ["replay.memory=50", "replay.share=0.2", "seed=3", "name=support"])
    assert [task.name for task in stream.tasks] == ["autumn", "spring", "winter"]
    assert {task.prompt.instruction for task in stream.tasks} == {"One of {labels}"}
    assert (stream.config.replay.memory, stream.config.seed, stream.name) == (50, 3, "support")


def test_equal_streams_have_equal_digests(folder: Path) -> None:
    one = read_stream(told(folder, ["autumn.jsonl", WINTER]))
    assert read_stream(told(folder, ["autumn.jsonl", WINTER], name="other")).digest == one.digest
    assert read_stream(told(folder, ["autumn.jsonl", WINTER], replay=0.3)).digest != one.digest
    assert read_stream(told(folder, [WINTER, "autumn.jsonl"])).digest != one.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replay": 1.0}, "replay.share"),
        ({"replay": {"keep": "newest"}}, "replay.keep"),
        ({"stream": []}, "stream"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"data": {"path": "autumn.jsonl"}}, "data.path: name the files in stream"),
        ({"data": {"limt": 3}}, "limt"),
        ({"stream": ["autumn.jsonl", "autumn.jsonl"]}, "two tasks are called 'autumn'"),
        ({"stream": ["autumn.jsonl", {**WINTER, "prompt": {"instruction": "x"}}]}, "one prompt for the whole stream"),
        ({"stream": ["autumn.jsonl", {**WINTER, "scorers": ["accuracy"]}]}, "first scorers are accuracy, macro_f1"),
        ({"stream": ["nothing.jsonl"]}, "nothing.jsonl"),
    ],
)
def test_what_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    values = told(folder, change.get("stream", ["autumn.jsonl", WINTER])) | {
        key: value for key, value in change.items() if key != "stream"
    }
    with pytest.raises((InputError, DataError), match=message):
        read_stream(values)


def test_tasks_that_do_not_go_together(folder: Path) -> None:
    rows = [{"question": f"{i} and {i}?", "answer": f"{2 * i}"} for i in range(12)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="all tasks must be of one kind; got classify, generate"):
        read_stream(told(folder, ["autumn.jsonl", "sums.jsonl"]))
    (folder / "asked.yaml").write_text("data: winter/train.jsonl\nprompt: {instruction: 'Name it'}\n")
    with pytest.raises(InputError, match="the task files have 2 different prompts"):
        read_stream(told(folder, ["autumn.jsonl", "asked.yaml"]))
    assert len(read_stream(told(folder, ["autumn.jsonl", "asked.yaml"], prompt={"instruction": "x"})).tasks) == 2
    only = {"name": "only", "data": {"test": "winter/test.jsonl"}}
    with pytest.raises(DataError, match="task only has no rows to train on"):
        read_stream(told(folder, ["autumn.jsonl", only]))
