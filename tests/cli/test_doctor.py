import json

import pytest

from luthier.cli import main


def run(*arguments):
    with pytest.raises(SystemExit) as raised:
        main(list(arguments))
    return raised.value.code or 0


def test_doctor_shows_every_topic_with_a_verdict(home, capsys):
    assert run("doctor") == 0
    said = capsys.readouterr().out
    for topic in (
        "CPU",
        "Memory",
        "GPU",
        "Software",
        "Disk",
        "Store",
        "Models",
        "Port",
        "Sandbox",
        "What to expect",
        "Ready.",
    ):
        assert topic in said
    assert "luthier pull smollm2-135m" in said


def test_doctor_as_json(home, capsys):
    assert run("doctor", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["cpu"]["usable"] >= 1
    assert all(finding["verdict"] in ("good", "fair", "poor", "broken") for finding in report["findings"])
    assert all(set(each) == {"work", "verdict", "estimate", "why"} for each in report["expectations"])


def test_doctor_exits_with_1_when_something_is_broken(home, capsys):
    home.mkdir()
    (home / "luthier.db").write_bytes(b"not a database" * 100)
    assert run("doctor") == 1
    assert "1 thing to put right first" in capsys.readouterr().out


def test_a_port_must_be_one(home, capsys):
    assert run("doctor", "--port", "70000") == 2
