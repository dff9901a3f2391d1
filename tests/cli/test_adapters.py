"""``luthier adapters``: each verb through the command line, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.models.test_combine import LABELS, adapter
from tests.models.test_inspect_adapter import changed

from luthier.cli import main
from luthier.store.database import open_store
from luthier.store.models import find


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as raised:
        main(list(arguments))
    return int(raised.value.code or 0)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_the_list(tiny_decoder: str, tiny_encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("adapters") == 0
    assert "nothing was tuned yet" in capsys.readouterr().err
    adapter(tiny_decoder, "support", 1)
    changed(tiny_encoder, "sorter", "bitfit", LABELS)
    assert run("adapters") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert "lora" in lines["support"] and "tiny-decoder" in lines["support"] and "torch swap" in lines["support"]
    assert "bitfit" in lines["sorter"]
    assert run("adapters", "--base", tiny_encoder, "--json") == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == ["sorter"]
    assert run("adapters", "--base", "lost") == 2


def test_inspect_shows_modules_and_a_picture(
    tiny_decoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter(tiny_decoder, "support", 1)
    assert run("adapters", "inspect", "support", "--picture", str(tmp_path / "p.png")) == 0
    said = capsys.readouterr()
    assert "1,280 in 4 modules" in said.out and "down_proj" in said.out and "█" in said.out
    assert (tmp_path / "p.png").exists() and "picture:" in said.err
    assert run("adapters", "inspect", "support", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 1280 and len(found["parts"]) == 4 and found["parts"][0]["rank"] == 4
    changed(tiny_decoder, "norms", "layer_norm")
    assert run("adapters", "inspect", "norms") == 0
    assert "model.norm" in capsys.readouterr().out


def test_rename_merge_and_combine(tiny_decoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    adapter(tiny_decoder, "a", 1)
    adapter(tiny_decoder, "b", 2)
    assert run("adapters", "rename", "a", "billing") == 0
    assert "a is now billing" in capsys.readouterr().err
    assert (
        run(
            "adapters",
            "combine",
            "billing",
            "b",
            "--as",
            "both",
            "--weights",
            "0.75,0.25",
            "--how",
            "svd",
            "--rank",
            "3",
        )
        == 0
    )
    assert "both = 0.75 billing + 0.25 b   (svd, rank 3" in capsys.readouterr().err
    assert run("adapters", "merge", "both", "--as", "whole", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "base"
    assert find(open_store(), "whole").kind == "base"
    assert run("adapters", "merge", "billing") == 0
    assert "billing-merged: base decoder" in capsys.readouterr().err


def test_unmerge_says_what_a_base_was_made_of(tiny_decoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    adapter(tiny_decoder, "a", 1)
    assert run("adapters", "merge", "a") == 0
    capsys.readouterr()
    assert run("adapters", "unmerge", "a-merged") == 0
    said = capsys.readouterr().err
    assert (
        "a-merged = tiny-decoder + a" in said and "bit for bit" in said and "luthier models --remove a-merged" in said
    )
    assert run("adapters", "unmerge", "a-merged", "--json") == 0
    assert json.loads(capsys.readouterr().out)["difference"] == 0
    assert run("adapters", "unmerge", tiny_decoder) == 2
    assert "tiny-decoder is not a merged base" in capsys.readouterr().err


def test_what_it_refuses(tiny_decoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    adapter(tiny_decoder, "a", 1)
    adapter(tiny_decoder, "b", 2)
    for arguments, says in (
        (("inspect", "c"), "model 'c' is not known"),
        (("inspect", tiny_decoder), "not something that tuning made"),
        (("rename", tiny_decoder, "x"), "not something that tuning made"),
        (("rename", "a", "b"), "'b' is taken"),
        (("merge", "a", "--as", "a b"), "a model name must be"),
        (("combine", "a", "--as", "c"), "two adapters or more"),
        (("combine", "a", "b", "--as", "c", "--weights", "1;2"), "--weights must be numbers with commas"),
        (("combine", "a", "b", "--as", "c", "--how", "sum"), "how must be cat or svd"),
    ):
        assert run("adapters", *arguments) == 2
        assert says in capsys.readouterr().err


def test_a_task_goes_to_another_language(tiny_encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.methods import made

    store = open_store()
    base = find(store, tiny_encoder)
    for language in ("english", "german"):
        made.adapter(store, base, language, "language_adapter")
    made.adapter(store, base, "task", on="english")
    assert run("adapters", "swap-language", "task", "german", "--as", "task-de") == 0
    assert "task-de = task on german" in capsys.readouterr().err
    assert [part["name"] for part in find(store, "task-de").meta["parts"]] == ["german"]
    assert run("adapters", "swap-language", "task", "germann", "--as", "other") == 2
    assert "Did you mean 'german'" in capsys.readouterr().err
    assert run("adapters", "swap-language", "english", "german", "--as", "other") == 2
    assert "english was not trained on top of another adapter" in capsys.readouterr().err
