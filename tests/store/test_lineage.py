import os
import subprocess
import sys

import pytest
from sqlalchemy import func, select

from luthier.core.errors import InputError, NotFoundError
from luthier.core.model import ModelRecord
from luthier.core.trace import Trace
from luthier.store import feedback, models, runs, traces
from luthier.store.database import edges
from luthier.store.home import new_id
from luthier.store.lineage import Node, lineage, record_edge

DATA = "ab12cd" + "0" * 58


@pytest.fixture
def loop(store):
    """dataset -> run -> adapter -> export and endpoint -> 8 traces -> 2 feedbacks -> dataset -> run -> second adapter."""
    run = runs.start(store, "tune", "first", {}, {})
    models.register(store, ModelRecord("base", "base", "decoder", "d0"))
    models.register(
        store, ModelRecord("lora", "adapter", "decoder", "d1", base="base", run_id=run.id, meta={"method": "lora"})
    )
    models.register(store, ModelRecord("lora-gguf", "export", "decoder", "d2", base="base", meta={"target": "lora"}))
    models.register(store, ModelRecord("support", "endpoint", "decoder", "d1", base="base", meta={"target": "lora"}))
    record_edge(store, Node("dataset", DATA, "tickets"), "train", Node("run", run.id))
    record_edge(store, Node("model", "base"), "base", Node("run", run.id))
    record_edge(store, Node("run", run.id), "made", Node("model", "lora"))
    asked = [
        Trace(new_id("trace"), f"2026-01-0{n}", "support", "chat", ({"role": "user", "content": f"q{n}"},), f"a{n}")
        for n in range(1, 9)
    ]
    traces.record_traces(store, asked)
    said = [
        feedback.record_feedback(store, asked[7].id, rating=-1, corrected="better"),
        feedback.record_feedback(store, asked[6].id, rating=1),
    ]
    for each in said:
        record_edge(store, Node("feedback", each.id), "collected", Node("dataset", "ef" * 32, "corrections"))
    second = runs.start(store, "tune", "second", {}, {})
    record_edge(store, Node("dataset", "ef" * 32, "corrections"), "train", Node("run", second.id))
    models.register(store, ModelRecord("lora2", "adapter", "decoder", "d3", base="base", run_id=second.id))
    return {"store": store, "run": run.id, "second": second.id, "traces": [t.id for t in asked], "feedback": said}


def path(tree, *names):
    """Follow children by name; fails when one is not there."""
    for name in names:
        found = [c for c in tree["children"] if name in (c["id"], c["label"])]
        assert len(found) == 1, f"{name} among {[(c['kind'], c['id'], c['label']) for c in tree['children']]}"
        tree = found[0]
    return tree


def test_an_endpoint_is_traced_back_to_the_examples(loop):
    tree = lineage("support", loop["store"]).tree("ancestors")
    assert (tree["kind"], tree["id"]) == ("endpoint", "support")
    run = path(tree, "lora", loop["run"])
    assert run["detail"]["name"] == "first" and run["relation"] == "made"
    assert path(run, "tickets")["id"] == DATA
    assert path(run, "base")["kind"] == "model"
    assert len(run["children"]) == 2, "the base is there once, though the record and an edge both say it"


def test_a_dataset_is_followed_to_the_answers_and_round_the_loop(loop):
    tree = lineage("tickets", loop["store"]).tree("descendants")
    endpoint = path(tree, loop["run"], "lora", "support")
    answers = path(endpoint, "support:*")
    assert answers["detail"]["count"] == 8
    assert [a["question"] for a in answers["detail"]["latest"]] == ["q8", "q7", "q6", "q5", "q4"]
    assert answers["detail"]["latest"][0]["feedback"] == [{"rating": -1, "corrected": "better"}]
    rated = path(answers, "support:*")
    assert rated["detail"] == {"count": 2, "up": 1, "down": 1}
    assert path(rated, "corrections")["relation"] == "collected (2)"
    assert path(rated, "corrections", loop["second"], "lora2")["kind"] == "model"
    assert path(tree, loop["run"], "lora", "lora-gguf")["relation"] == "exported as"


def test_a_model_made_from_feedback_leads_back_to_the_first_dataset(loop):
    tree = lineage("lora2", loop["store"]).tree("ancestors")
    assert path(
        tree, loop["second"], "corrections", "support:*", "support:*", "support", "lora", loop["run"], "tickets"
    )


def test_one_answer_leads_back_to_its_model_and_on_to_its_feedback(loop):
    graph = lineage(loop["traces"][7], loop["store"])
    assert path(graph.tree("ancestors"), "support", "lora", loop["run"], "tickets")
    feedback = path(graph.tree("descendants"), loop["feedback"][0].id)
    assert feedback["detail"] == {"rating": -1, "corrected": "better"}
    assert path(feedback, "corrections")
    assert lineage(loop["feedback"][0].id, loop["store"]).root.kind == "feedback"


@pytest.mark.parametrize("name", ["lora", "tickets", DATA, DATA[:8], "first", "base", "support"])
def test_names_that_people_use_are_found(loop, name):
    graph = lineage(name, loop["store"])
    assert loop["run"] in {node["id"] for node in graph.as_dict()["nodes"]}


def test_run_ids_and_their_starts_are_found(loop):
    assert lineage(loop["run"], loop["store"]).root == Node("run", loop["run"])
    assert lineage(loop["second"][:-1], loop["store"]).root == Node("run", loop["second"])
    with pytest.raises(InputError, match="several"):
        lineage("run_" + loop["run"][4:8], loop["store"])


def test_unknown_names_suggest_near_ones(loop):
    with pytest.raises(NotFoundError, match="Did you mean 'support'"):
        lineage("suport", loop["store"])
    with pytest.raises(NotFoundError):
        lineage(DATA[:5], loop["store"])


def test_as_dict_has_every_node_of_every_edge(loop):
    plain = lineage("lora", loop["store"]).as_dict()
    nodes = {(n["kind"], n["id"]) for n in plain["nodes"]}
    assert plain["root"] == {"kind": "model", "id": "lora", "label": ""}
    for edge in plain["edges"]:
        assert {(edge[end]["kind"], edge[end]["id"]) for end in ("source", "target")} <= nodes
    assert len(plain["edges"]) == len({str(e) for e in plain["edges"]})


def test_the_current_home_is_used_without_a_store(loop):
    assert lineage("support").root == Node("endpoint", "support")


def test_recording_an_edge_again_changes_nothing(store):
    for _ in range(2):
        record_edge(store, Node("dataset", "d"), "train", Node("run", "r"))
    record_edge(store, Node("dataset", "d"), "validation", Node("run", "r"))
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(edges)).scalar() == 2


def test_impossible_nodes_and_edges_are_refused(store):
    with pytest.raises(InputError, match="kind must be one of"):
        Node("thing", "x")
    with pytest.raises(InputError, match="empty"):
        Node("run", "")
    with pytest.raises(InputError, match="joins two"):
        record_edge(store, Node("run", "x"), "made", Node("run", "x"))
    with pytest.raises(InputError, match="ancestors or descendants"):
        record_edge(store, Node("run", "x"), "made", Node("model", "m"))
        lineage("m", store).tree("sideways")


def test_a_cycle_is_drawn_once(store):
    a, b = Node("dataset", "aaaaaa"), Node("run", "rrrrrr")
    record_edge(store, a, "train", b)
    record_edge(store, b, "made", a)
    tree = lineage("aaaaaa", store).tree("descendants")
    assert path(tree, "rrrrrr", "aaaaaa")["again"] and path(tree, "rrrrrr", "aaaaaa")["children"] == []


def test_two_processes_recording_the_same_edge_keep_one(store, home):
    code = (
        "import sys\nfrom luthier.store.database import open_store\nfrom luthier.store.lineage import Node, record_edge\n"
        "store = open_store(); print('ready', flush=True); sys.stdin.readline()\n"
        "for n in range(30): record_edge(store, Node('dataset', f'd{n}'), 'train', Node('run', 'r'))\n"
    )
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, env=dict(os.environ), text=True
        )
        for _ in "ab"
    ]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(edges)).scalar() == 30
