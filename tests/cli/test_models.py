import json

import pytest

from luthier.cli import main
from luthier.core.model import ModelRecord
from luthier.store.database import open_store
from luthier.store.models import register


def run(*arguments):
    with pytest.raises(SystemExit) as raised:
        main(list(arguments))
    return raised.value.code or 0


@pytest.fixture
def filled(home):
    store = open_store()
    register(
        store,
        ModelRecord(
            "smol",
            "base",
            "decoder",
            "d0",
            370_947_299,
            "Apache-2.0",
            meta={"source": "pypi:x==1#y", "quantization": "Q4_1"},
        ),
    )
    register(
        store,
        ModelRecord(
            "support", "adapter", "decoder", "d1", 2_000_000, "Apache-2.0", "smol", "run_1", meta={"method": "lora"}
        ),
    )
    register(
        store, ModelRecord("live", "endpoint", "decoder", "d1", 0, "Apache-2.0", "smol", meta={"target": "support"})
    )


def test_the_table_says_what_where_from_and_how_large(filled, capsys):
    assert run("models") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert all(word in rows["smol"] for word in ("base decoder", "Q4_1", "371 MB", "Apache-2.0", "pypi:x==1"))
    assert all(word in rows["support"] for word in ("adapter", "lora", "2.0 MB", "smol", "run_1"))
    assert "endpoint" in rows["live"] and "support" in rows["live"]


def test_one_kind_and_json(filled, capsys):
    assert run("models", "--kind", "adapter", "--json") == 0
    assert [record["name"] for record in json.loads(capsys.readouterr().out)] == ["support"]
    assert run("models", "--kind", "adaptor") == 2
    assert "base, adapter, export, endpoint" in capsys.readouterr().err


def test_an_empty_store_says_how_to_begin(home, capsys):
    assert run("models") == 0
    said = capsys.readouterr()
    assert said.out == "" and "luthier pull smollm2-135m" in said.err
    assert run("models", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_remove(filled, capsys):
    assert run("models", "--remove", "support") == 2
    assert "needed by live" in capsys.readouterr().err
    assert run("models", "--remove", "live") == 0
    assert run("models", "--remove", "live") == 2


def test_a_student_of_some_layers(tiny_decoder, capsys):
    assert run("models", "shrink", tiny_decoder, "--layers", "1", "--as", "student") == 0
    assert "student = layers 1 of tiny-decoder" in capsys.readouterr().err
    assert run("models", "shrink", tiny_decoder, "--layers", "one", "--as", "other") == 2
    assert "whole numbers with commas" in capsys.readouterr().err
    assert run("models", "shrink", tiny_decoder, "--as", "third", "--json") == 0
    assert json.loads(capsys.readouterr().out)["meta"]["layers"] == [0]


def test_a_new_model(home, tmp_path, capsys):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The parcel has not arrived. Who is the teacher now?\n")
    shape = ["--layers", "2", "--width", "32", "--heads", "4", "--kv-heads", "2", "--context-length", "64"]
    assert not run("models", "new", "mine", *shape, "--data", str(corpus), "--vocabulary", "300", "--json")
    made = json.loads(capsys.readouterr().out)
    assert (made["name"], made["kind"], made["meta"]["new"]["kv_heads"]) == ("mine", "base", 2)
    assert not run("models", "new", "other", "--architecture", "gpt2", *shape[:6], "--tokenizer", "mine")
    said = capsys.readouterr()
    assert "other = a new gpt2 of" in said.out + said.err
    assert run("models", "new", "third", *shape) == 2
    assert "give one of --tokenizer MODEL" in capsys.readouterr().err
    assert run("models", "new", "third", "--tokenizer", "mine") == 2
    assert "or layers, width and heads" in capsys.readouterr().err
