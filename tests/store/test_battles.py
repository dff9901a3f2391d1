import os
import subprocess
import sys
from dataclasses import replace

import pytest
from sqlalchemy import text

from luthier.core.errors import InputError, StoreError
from luthier.store import database
from luthier.store.battles import (
    Battle,
    arena_folder,
    known_keys,
    list_arenas,
    list_battles,
    pair_of,
    record_battles,
    vote_key,
)
from luthier.store.database import HEAD, Store
from luthier.store.migrations import upgrade
from luthier.store.traces import list_traces


def battle(number=0, **changes):
    values = {
        "prompt": f"question {number} 请",
        "model_a": "small",
        "model_b": "large",
        "answer_a": "yes",
        "answer_b": f"no {number}",
        "winner": "model_b",
        "source": "human",
        "voter": "ana",
    }
    return Battle(**values | changes)


def test_a_battle_comes_back_as_it_went_in(store):
    one = battle(shown="ba", digest_a="d" * 64, detail={"reason": "better", "votes": ["a", None]}, arena="taste")
    assert record_battles(store, [one]) == 1
    (found,) = list_battles(store)
    assert found.id.startswith("battle_") and found.created_at and found.key
    assert replace(found, id="", created_at="", key="") == one
    assert list_arenas(store) == {"taste": 1}
    assert known_keys(store, "taste") == {vote_key("taste", one.pair, "human", "ana")}
    assert known_keys(store, "other") == frozenset()


def test_one_voter_votes_once_on_a_pair(store):
    assert record_battles(store, [battle(1), battle(2), battle(1)]) == 2
    swapped = battle(1, model_a="large", model_b="small", answer_a="no 1", answer_b="yes", winner="model_a")
    assert swapped.pair == battle(1).pair
    assert record_battles(store, [swapped, battle(3)]) == 1
    assert record_battles(store, [battle(1, voter="bo"), battle(1, source="judge"), battle(1, arena="b")]) == 3
    assert record_battles(store, []) == 0
    assert [b.prompt for b in list_battles(store, "arena", source="judge")] == ["question 1 请"]
    assert len(list_battles(store, "arena")) == 5


def test_a_pair_is_its_prompt_models_and_answers():
    pair = pair_of("p", ("a", "x"), ("b", "y"))
    assert pair == pair_of("p", ("b", "y"), ("a", "x"))
    assert len({pair, pair_of("q", ("a", "x"), ("b", "y")), pair_of("p", ("a", "y"), ("b", "x"))}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"winner": "model_c"}, "winner must be one of 'model_a', 'model_b', 'tie', 'skip'; got 'model_c'"),
        ({"source": "oracle"}, "source must be one of 'human', 'judge'"),
        ({"shown": "aa"}, "shown must be one of"),
        ({"model_b": "small"}, "two models; got 'small' twice"),
    ],
)
def test_impossible_battles_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        battle(**change)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "x" * 200])
def test_an_arena_has_a_folder_of_its_own(store, name):
    assert arena_folder(store, "taste") == store.home.root / "arenas" / "taste"
    with pytest.raises(InputError, match="arena must be a name"):
        arena_folder(store, name)


def test_a_store_of_the_first_schema_keeps_what_it_has(home):
    """Rows written under 0001 are there after the migration, and battles can be written."""
    home.mkdir()
    engine = database._engine(f"sqlite:///{home / 'luthier.db'}")
    with engine.begin() as connection:
        upgrade(connection, "0001")
        assert not connection.dialect.has_table(connection, "battles")
        row = {
            "id": "t1",
            "created_at": "2026-01-01T00:00:00.000Z",
            "model": "m",
            "operation": "chat",
            "answer": "kept",
        }
        row |= dict.fromkeys(("model_digest", "base_digest", "template_digest", "prompt_digest"), "")
        row |= {"messages": "[]", "parameters": "{}", "prompt_tokens": 0, "completion_tokens": 0}
        row |= {"latency_s": 0.0, "cost": 0.0, "finish_reason": "stop", "error": ""}
        names = ", ".join(row)
        connection.execute(text(f"INSERT INTO traces ({names}) VALUES ({', '.join(f':{name}' for name in row)})"), row)
    assert Store(database.home(home), engine).version() == "0001"
    engine.dispose()
    store = Store.open(home)
    assert store.version() == HEAD != "0001"
    assert [(t.answer, t.tenant, t.details) for t in list_traces(store)] == [("kept", "local", {})]
    assert record_battles(store, [battle()]) == 1
    with store.read() as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"


def test_a_full_disk_loses_no_vote_that_was_taken(home):
    store = Store.open(home)
    record_battles(store, [battle(0)])
    with store.engine.connect() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar()
        connection.execute(text(f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(StoreError, match="full"):
        record_battles(store, [battle(n, answer_a="x" * 5000) for n in range(1, 50)])
    assert [b.prompt for b in list_battles(store)] == ["question 0 请"]


WRITER = """
import sys
from luthier.store.database import Store
from luthier.store.battles import Battle, record_battles
store = Store.open()
print("ready", flush=True); sys.stdin.readline()
new = 0
for n in range(60):
    shared = Battle(f"q{n}", "a", "b", "x", "y", "tie", "judge", "same judge")
    own = Battle(f"q{n}", "a", "b", "x", "y", "tie", "human", sys.argv[1])
    new += record_battles(store, [shared, own])
print(new, flush=True)
"""


def test_two_writers_lose_no_vote_and_count_none_twice(home):
    pipe = subprocess.PIPE
    env = {**os.environ, "LUTHIER_HOME": str(home)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, name], env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for name in ("ana", "bo")
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n", writer.stderr.read()
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    said = [writer.communicate(timeout=60) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], said
    assert sum(int(out) for out, _ in said) == 180
    found = list_battles(Store.open(home))
    assert len(found) == 180
    assert sorted({b.voter for b in found}) == ["ana", "bo", "same judge"]
    assert sum(b.voter == "same judge" for b in found) == 60
