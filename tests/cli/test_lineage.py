import json

import pytest

from luthier.cli import main
from luthier.core.model import ModelRecord
from luthier.core.trace import Trace
from luthier.store import feedback, runs, traces
from luthier.store.database import open_store
from luthier.store.lineage import Node, record_edge
from luthier.store.models import register


def run(*arguments):
    with pytest.raises(SystemExit) as raised:
        main(list(arguments))
    return raised.value.code or 0


@pytest.fixture
def loop(home):
    store = open_store()
    made = runs.start(store, "tune", "first [x]", {}, {})
    register(store, ModelRecord("smol", "base", "decoder", "d0"))
    register(
        store,
        ModelRecord("support", "adapter", "decoder", "d1" * 32, base="smol", run_id=made.id, meta={"method": "lora"}),
    )
    record_edge(store, Node("dataset", "ab" * 32, "tickets"), "train", Node("run", made.id))
    asked = ({"role": "user", "content": "Where [is] my\nparcel?"},)
    for number in range(7):
        traces.record_trace(
            store, Trace(f"trace_{number}", f"2026-01-01T00:00:0{number}", "support", "chat", asked, "On its way.")
        )
    feedback.record_feedback(store, "trace_6", rating=-1, corrected="Lost.")
    return made.id


def test_the_tree_goes_both_ways(loop, capsys):
    assert run("lineage", "support") == 0
    said = capsys.readouterr().out
    back, forth = said.split("what it made\n")
    assert (
        "run first [x]" in back
        and loop in back
        and "model smol" in back
        and "dataset tickets" in back
        and "abababababab" in back
    )
    assert "7 answers" in forth and "last 5 shown" in forth
    assert forth.count("Where [is] my parcel? -> On its way.") == 5
    assert "(bad, corrected: Lost.)" in forth and "trace_6" in forth and "trace_1 " not in forth
    assert "1 statement  0 good, 1 bad" in forth


def test_a_dataset_and_a_trace_have_their_trees(loop, capsys):
    assert run("lineage", "tickets") == 0
    said = capsys.readouterr().out
    assert "nothing recorded" in said and "7 answers" in said
    assert run("lineage", "trace_6") == 0
    said = capsys.readouterr().out
    assert "Where [is] my parcel?" in said and "model support" in said and "dataset tickets" in said


def test_json_has_nodes_and_edges(loop, capsys):
    assert run("lineage", "support", "--json") == 0
    graph = json.loads(capsys.readouterr().out)
    assert graph["root"]["id"] == "support" and {"dataset", "run", "model", "trace"} <= {
        n["kind"] for n in graph["nodes"]
    }


def test_unknown_names_exit_with_2(loop, capsys):
    assert run("lineage", "suport") == 2
    assert "Did you mean 'support'" in capsys.readouterr().err
