import io
import json

import pytest

from luthier.cli import _print


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (92_871_040, "92.9 MB"),
        (370_947_299, "371 MB"),
        (999_600_000, "1.0 GB"),
        (2.5e12, "2.5 TB"),
    ],
)
def test_sizes(count, text):
    assert _print.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.004, "0.00 s"),
        (0.42, "0.42 s"),
        (12.34, "12.3 s"),
        (59.97, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7440, "2 h 04 min"),
    ],
)
def test_durations(seconds, text):
    assert _print.duration(seconds) == text


def test_results_go_to_stdout_and_remarks_to_stderr(capsys):
    _print.show("[bold]result[/]")
    _print.say("remark")
    _print.warn("odd [thing]")
    said = capsys.readouterr()
    assert said.out == "result\n" and said.err == "remark\nwarning: odd [thing]\n"


def test_json_is_json_even_of_numbers_that_json_lacks(capsys):
    _print.show_json({"a": float("nan"), "b": "ü", "c": (1, 2)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": "ü", "c": [1, 2]}


def test_tables_do_not_fold_in_a_pipe(capsys):
    _print.show(_print.table(["name", "size"], [("x" * 100, 5), (None, "[green]yes[/]")], title="t", right=["size"]))
    lines = capsys.readouterr().out.splitlines()
    assert any("x" * 100 in line for line in lines) and any("yes" in line and "green" not in line for line in lines)


def test_progress_without_a_terminal_is_a_line_a_stage(capsys):
    with _print.progress() as report:
        for done in range(0, 1001, 10):
            report("tune", done, 1000)
        report("download x", 0, 2_000_000)
        report("download x", 2_000_000, 2_000_000)
        report("one go", 5, 5)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" in ")[0].split("  ")[0] for line in lines] == [
        "tune …",
        "tune: 1,000/1,000",
        "download x …",
        "download x: 2.0 MB of 2.0 MB",
        "one go: 5/5",
    ]


def test_progress_says_how_far_it_came_when_the_work_fails(capsys):
    with pytest.raises(RuntimeError), _print.progress() as report:
        report("tune", 0, 10)
        report("tune", 3, 10)
        raise RuntimeError
    assert "tune: 3/10" in capsys.readouterr().err


def test_long_stages_say_something_every_ten_seconds(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr(_print.time, "monotonic", lambda: float(next(clock)))
    with _print.progress() as report:
        for done in range(12):
            report("tune", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert 4 <= len(lines) <= 8 and "/s" in lines[1]


def test_progress_on_a_terminal_draws_a_bar_with_amount_and_rate(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    with _print.progress() as report:
        report("download [x]", 0, 4_000_000)
        report("download [x]", 4_000_000, 4_000_000)
        report("count", 7, 0)
    drawn = screen.getvalue()
    assert "download [x]" in drawn and "4.0 MB of 4.0 MB" in drawn and "count" in drawn and "\x1b[" in drawn
