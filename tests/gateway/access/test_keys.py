from __future__ import annotations

import time

import pytest

from luthier.core.errors import InputError
from luthier.core.key import Limits
from luthier.gateway.access.caller import SCOPES
from luthier.gateway.access.keys import Keys, check_bind, is_loopback, read_keys
from luthier.gateway.api.wire import RequestError
from luthier.store.database import open_store
from luthier.store.keys import create_key, find_key, limit_key, limit_tenant, revoke_key, rotate_key


def test_keys_are_read_from_the_named_variable_and_kept_hashed() -> None:
    keys = read_keys("K", {"K": " first-secret, second-secret ,"})
    assert keys.caller("Bearer first-secret").key_id != keys.caller("Bearer second-secret").key_id
    assert "secret" not in repr(keys)
    assert "secret" not in repr(vars(keys))


@pytest.mark.parametrize("header", ["Bearer first", "bearer second", "Bearer  first "])
def test_known_keys_are_allowed(header: str) -> None:
    caller = read_keys("K", {"K": "first,second"}).caller(header)
    assert (caller.tenant, caller.scopes, caller.models) == ("local", frozenset(SCOPES), ("*",))


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer firs", "Basic first", "first", "Bearer first,second", "Bearer \ud800"],
)
def test_everything_else_is_not(header: str | None) -> None:
    with pytest.raises(RequestError) as raised:
        read_keys("K", {"K": "first,second"}).caller(header)
    assert (raised.value.http_status, raised.value.code) == (401, "invalid_api_key")
    assert "first" not in str(raised.value)


@pytest.mark.parametrize("environment", [{}, {"K": ""}, {"K": " , "}])
def test_a_variable_without_keys_is_an_error_that_names_it(environment: dict[str, str]) -> None:
    with pytest.raises(InputError, match="'K'"):
        read_keys("K", environment)


def test_no_variable_means_no_keys() -> None:
    assert not read_keys(None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    check_bind(host, asks=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", "localhost.example.org", ""])
def test_a_public_address_needs_keys(host: str) -> None:
    with pytest.raises(InputError, match="--keys") as raised:
        check_bind(host, asks=False)
    assert raised.value.exit_code == 2
    check_bind(host, asks=True)


@pytest.fixture
def store(home):
    return open_store()


def refusal(keys, secret):
    with pytest.raises(RequestError) as raised:
        keys.caller(f"Bearer {secret}")
    assert raised.value.http_status == 401
    return raised.value.code


def test_an_empty_store_of_keys_refuses_everybody(store):
    keys = Keys(store=store)
    assert keys, "it asks for keys, though there are none"
    assert refusal(keys, "anything") == "invalid_api_key"


def test_a_key_of_the_store_is_a_caller(store):
    made, secret = create_key(
        store, "acme", scopes=["traces"], models=["a-*", "b"], limits={"tokens_per_day": 9}, expires="1h"
    )
    keys = Keys(store=store)
    caller = keys.caller(f"Bearer {secret}")
    assert (caller.tenant, caller.key_id, caller.scopes) == ("acme", made.id, frozenset({"traces"}))
    assert caller.sees("a-1") and caller.sees("b") and not caller.sees("c")
    assert keys.limits[made.id] == Limits(tokens_per_day=9)
    assert refusal(keys, made.digest.hex()) == "invalid_api_key"


def test_changes_come_with_a_refresh_which_reads_only_when_there_are_any(store):
    keys = Keys(store=store)
    made, first = create_key(store, "acme")
    assert refusal(keys, first) == "invalid_api_key"
    assert keys.refresh() and not keys.refresh()
    assert keys.caller(f"Bearer {first}").key_id == made.id
    limit_key(store, made.id, {"requests_per_minute": 3})
    limit_tenant(store, "acme", {"requests_per_minute": 4})
    assert keys.refresh()
    assert keys.limits[made.id].requests_per_minute == 3
    assert keys.tenants["acme"].requests_per_minute == 4
    _, second = rotate_key(store, made.id)
    assert keys.refresh()
    assert refusal(keys, first) == "invalid_api_key"
    assert keys.caller(f"Bearer {second}").key_id == made.id
    revoke_key(store, made.id)
    assert keys.refresh()
    assert refusal(keys, second) == "revoked_api_key"


def test_a_key_ends_when_its_time_is_over_and_an_old_secret_with_its_grace(store, monkeypatch):
    made, first = create_key(store, "acme", expires="2h")
    _, second = rotate_key(store, made.id, grace="1h")
    keys = Keys(store=store)
    assert keys.caller(f"Bearer {first}") == keys.caller(f"Bearer {second}")
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start + 3601)
    assert refusal(keys, first) == "expired_api_key"
    keys.caller(f"Bearer {second}")
    monkeypatch.setattr(time, "time", lambda: start + 7201)
    assert refusal(keys, second) == "expired_api_key"


def test_both_kinds_of_keys_together_and_the_last_use(store):
    made, secret = create_key(store, "acme")
    keys = read_keys("K", {"K": "mine"}, store=store)
    assert keys.caller("Bearer mine").tenant == "local"
    assert keys.caller(f"Bearer {secret}").tenant == "acme"
    assert find_key(store, made.id).last_used_at is None
    keys.write_used()
    assert find_key(store, made.id).last_used_at >= made.created_at
    assert not keys.used
