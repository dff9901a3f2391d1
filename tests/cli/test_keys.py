from __future__ import annotations

import json

import pytest

from luthier.store.database import open_store
from luthier.store.keys import digest_of, find_key, list_keys
from luthier.store.usage import Used, add_usage


def test_a_key_goes_to_stdout_alone_and_is_never_shown_again(run):
    code, out, err = run(
        "keys", "create", "acme", "--name", "ci", "--limit", "requests_per_minute=60", "--expires", "90d"
    )
    assert code == 0
    (record,) = list_keys(open_store())
    secret = out.removesuffix("\n")
    assert digest_of(secret) == record.digest
    assert "not shown again" in err and secret not in err
    for shown in (
        run("keys", "list"),
        run("keys", "show", "ci"),
        run("keys", "list", "--json"),
        run("audit", "--json"),
    ):
        assert shown[0] == 0 and secret not in shown[1] + shown[2]
    assert record.hint in run("keys", "list")[1]
    assert "requests_per_minute=60" in run("keys", "show", record.hint)[1]


def test_scopes_models_and_json(run):
    made = json.loads(
        run("keys", "create", "acme", "--scope", "traces", "--scope", "batch", "--model", "a-*", "--json")[1]
    )
    assert (made["scopes"], made["models"], made["state"]) == (["traces", "batch"], ["a-*"], "active")
    assert digest_of(made["key"]) == find_key(open_store(), made["id"]).digest


def test_rotate_and_revoke(run):
    first = json.loads(run("keys", "create", "acme", "--name", "ci", "--json")[1])
    second = json.loads(run("keys", "rotate", "ci", "--grace", "24h", "--json")[1])
    assert (second["id"], second["key"] == first["key"]) == (first["id"], False)
    assert second["old_until"]
    assert run("keys", "revoke", "ci", "nobody")[0] == 2
    assert find_key(open_store(), "ci").state() == "active", "none ends when one of them is not known"
    assert run("keys", "revoke", "ci")[0] == 0
    assert find_key(open_store(), "ci").state() == "revoked"
    assert first["id"] not in run("keys", "list")[1]
    assert first["id"] in run("keys", "list", "--all")[1]
    assert run("keys", "rotate", "ci")[0] == 2


def test_limits_of_a_key_and_of_a_tenant(run):
    run("keys", "create", "acme", "--name", "ci")
    assert run("keys", "limits", "ci")[1] == "no limits\n"
    out = run("keys", "limits", "ci", "tokens_per_minute=10_000", "cost_per_month=2.5")[1]
    assert out == "tokens_per_minute=10000, cost_per_month=2.5\n"
    assert json.loads(run("keys", "limits", "ci", "cost_per_month=none", "--json")[1]) == {"tokens_per_minute": 10000}
    assert json.loads(run("keys", "limits", "--tenant", "acme", "concurrent_requests=4", "--json")[1]) == {
        "concurrent_requests": 4
    }
    assert run("keys", "limits", "--tenant", "acme")[1] == "concurrent_requests=4\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "ACME"], "tenant must be"),
        (["create", "acme", "--scope", "all"], "scope 'all'"),
        (["create", "acme", "--limit", "requests_per_minute"], "NAME=NUMBER"),
        (["create", "acme", "--limit", "requests_per_minute=many"], "NAME=NUMBER"),
        (["create", "acme", "--limit", "rpm=5"], "'rpm'"),
        (["create", "acme", "--expires", "soon"], "expires"),
        (["show", "nobody"], "'nobody'"),
        (["limits"], "--tenant"),
        (["limits", "--tenant", "nobody"], "'nobody'"),
        (["usage", "--by", "colour"], "'colour'"),
    ],
)
def test_what_is_refused(run, arguments, said):
    code, out, err = run("keys", *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_usage_is_a_board_with_a_sum(run):
    made = json.loads(run("keys", "create", "acme", "--name", "ci", "--json")[1])
    assert "Nothing" in run("keys", "usage")[2]
    add_usage(open_store(), {("2026-11-19", "acme", made["id"], "m"): Used(3, 1, 1, 1000, 500, 0.25)})
    add_usage(open_store(), {("2026-11-20", "acme", made["id"], "m"): Used(4, 0, 0, 100, 50, 0.5)})
    board = run("keys", "usage")[1]
    assert "acme/ci" in board and "1,100" in board and "0.7500" in board
    assert "1,000" not in run("keys", "usage", "--since", "2026-11-20")[1]
    (row,) = json.loads(run("keys", "usage", "--by", "tenant", "--json")[1])
    assert (row["tenant"], row["requests"], row["cost"]) == ("acme", 7, 0.75)
