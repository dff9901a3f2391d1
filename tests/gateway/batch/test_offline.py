from __future__ import annotations

import json

import pytest

import luthier
from luthier.core.errors import ConflictError, DataError, EngineError, InputError
from luthier.gateway.batch.offline import run_batch

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def write(tmp_path):
    def written(*rows):
        path = tmp_path / "in.jsonl"
        path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in rows))
        return path

    return written


@pytest.fixture
def out(tmp_path):
    return tmp_path / "deep" / "out.jsonl"


def rows_of(path):
    return {row["custom_id"]: row for row in map(json.loads, path.read_text().splitlines())}


def content(row):
    return row["response"]["body"]["choices"][0]["message"]["content"]


def test_lines_of_every_kind_in_one_file(home, write, out, make_fake):
    engine = make_fake("m")
    source = write(
        {
            "custom_id": "a",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "gpt-9", "messages": HELLO},
        },
        {"id": 17, "messages": HELLO, "label": "kept out"},
        {"messages": HELLO},
        {"prompt": "once upon"},
        {"custom_id": "e", "url": "/v1/embeddings", "body": {"input": ["x", "y"]}},
    )
    summary = run_batch(source, out, model=engine, defaults={"max_tokens": 4, "temperature": 0.0})
    assert (summary.total, summary.completed, summary.failed, summary.kept) == (5, 5, 0, 0)
    rows = rows_of(out)
    assert set(rows) == {"a", "17", "3", "4", "e"}
    assert content(rows["a"]) == content(rows["17"]) == content(rows["3"])
    assert rows["a"]["response"]["body"]["usage"]["completion_tokens"] <= 4
    assert rows["4"]["response"]["body"]["object"] == "text_completion"
    vectors = [each["embedding"] for each in rows["e"]["response"]["body"]["data"]]
    assert vectors == [list(map(float, row)) for row in engine.embed(["x", "y"])]
    assert summary.prompt_tokens > 0 and summary.seconds > 0


def test_lines_go_together_and_progress_is_told(home, write, out, scripted):
    engine, told = scripted(), []
    source = write(*({"messages": [{"role": "user", "content": f"q{n}"}]} for n in range(10)))
    run_batch(source, out, model=engine, rows=4, progress=lambda *each: told.append(each))
    assert engine.batches == [4, 4, 2]
    assert told == [("answer", 0, 10), ("answer", 4, 10), ("answer", 8, 10), ("answer", 10, 10)]


def test_an_interrupted_run_goes_on(home, write, out, scripted):
    source = write(*({"messages": [{"role": "user", "content": f"q{n}"}]} for n in range(10)))

    def before(number):
        if len(engine.asked) > 6:
            raise KeyboardInterrupt

    engine = scripted(before=before)
    with pytest.raises(KeyboardInterrupt):
        run_batch(source, out, model=engine, rows=2)
    assert len(rows_of(out)) == 6
    out.write_bytes(out.read_bytes()[:-7])  # and the machine went down
    again = scripted()
    summary = run_batch(source, out, model=again, rows=2)
    assert (summary.kept, summary.completed) == (5, 5)
    assert sorted(prompt[0].content for prompt, _ in again.asked) == [f"q{n}" for n in range(5, 10)]
    done = scripted()
    assert run_batch(source, out, model=done).kept == 10 and not done.asked
    assert run_batch(source, out, model=scripted(), overwrite=True).completed == 10


def test_lines_that_fail_are_rows_and_may_be_asked_again(home, write, out, make_fake):
    source = write(
        {"messages": HELLO},
        {"messages": [{"role": "user", "content": "far too long " * 9}]},
        {"messages": HELLO, "id": "x"},
        {"messages": []},
    )
    summary = run_batch(source, out, model=make_fake("m", context_length=10))
    assert (summary.completed, summary.failed) == (2, 2)
    assert sum(summary.errors.values()) == 2 and any("at most 10" in said for said in summary.errors)
    assert rows_of(out)["2"]["response"]["status_code"] == 400
    assert run_batch(source, out, model=make_fake("m")).kept == 4
    again = run_batch(source, out, model=make_fake("m"), retry_failed=True)
    assert (again.kept, again.completed, again.failed) == (2, 1, 1)
    assert len(out.read_text().splitlines()) == 4


def test_an_engine_that_is_gone_ends_it_and_the_next_run_goes_on(home, write, out, make_fake):
    source = write(*({"messages": [{"role": "user", "content": f"q{n}"}]} for n in range(4)))
    with pytest.raises(EngineError, match="gone"):
        run_batch(source, out, model=make_fake("m", fail={"q2": "gone"}), rows=2)
    assert len(rows_of(out)) == 2
    assert run_batch(source, out, model=make_fake("m"), rows=2).completed == 2


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["{broken"], "line 1: the line is no JSON"),
        ([{"messages": HELLO}, {"messages": HELLO, "id": 1}], "line 2: custom_id '1' occurs twice"),
        ([{"text": "what"}], "line 1"),
        ([{"messages": HELLO, "prompt": "both"}], "not both"),
        ([{"custom_id": "a", "url": "/v1/images", "body": {}}], "url must be"),
        ([{"custom_id": "a", "body": []}], "body"),
        (["{"] * 9, "and 4 more"),
        ([], "no lines"),
    ],
)
def test_a_broken_file_is_said_before_anything_is_asked(home, write, out, scripted, rows, said):
    engine = scripted()
    with pytest.raises(DataError, match=said) as raised:
        run_batch(write(*rows), out, model=engine)
    assert raised.value.exit_code == 2
    assert not engine.asked and not out.exists()


def test_an_output_of_another_input_is_not_touched(home, write, out, scripted):
    run_batch(write({"messages": HELLO, "id": "old"}), out, model=scripted())
    before = out.read_bytes()
    with pytest.raises(ConflictError, match="old"):
        run_batch(write({"messages": HELLO, "id": "new"}), out, model=scripted())
    assert out.read_bytes() == before


def test_an_input_that_is_not_there(home, tmp_path, out, scripted):
    with pytest.raises(InputError, match=r"none\.jsonl"):
        run_batch(tmp_path / "none.jsonl", out, model=scripted())
    with pytest.raises(InputError, match="rows"):
        run_batch(tmp_path, out, model=scripted(), rows=0)


def test_it_is_a_verb_of_the_package_and_opens_models_by_name(home, write, out):
    summary = luthier.run_batch(write({"messages": HELLO}), out, model="fake:yes,no")
    assert summary.completed == 1
    assert content(rows_of(out)["1"]) in ("yes", "no")
