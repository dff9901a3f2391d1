from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from luthier.core.errors import ConflictError, InputError, NotFoundError
from luthier.core.key import Limits
from luthier.store.audit import list_audit, verify
from luthier.store.keys import (
    create_key,
    digest_of,
    find_key,
    keys_version,
    limit_key,
    limit_tenant,
    list_keys,
    list_tenants,
    note_last_used,
    read_expiry,
    revoke_key,
    rotate_key,
    tenant_limits,
)


def test_a_key_has_256_random_bits_and_only_its_hash_is_kept(store):
    made, secret = create_key(store, "acme", "ci")
    assert secret.startswith("lth_") and len(secret) == 4 + 43
    assert made.digest == hashlib.sha256(secret.encode()).digest()
    assert secret.startswith(made.hint) and len(made.hint) == 10
    assert secret not in repr(made) and made.digest.hex() not in str(made.as_dict())
    files = [path for path in Path(store.home.root).rglob("*") if path.is_file()]
    assert files and all(secret[12:].encode() not in path.read_bytes() for path in files)
    assert create_key(store, "acme")[1] != secret


def test_what_is_written_is_what_is_read(store):
    made, _ = create_key(
        store, "acme", "ci", scopes=["admin", "inference"], models=["tickets-*"], expires="2h", actor="user:ann",
        limits={"requests_per_minute": 5, "cost_per_day": 0.5},
    )  # fmt: skip
    assert list_keys(store) == [made] == list_keys(store, "acme")
    assert list_keys(store, "other") == []
    assert made.scopes == ("inference", "admin")
    assert made.limits == Limits(requests_per_minute=5, cost_per_day=0.5)
    assert find_key(store, made.id) == find_key(store, made.hint) == find_key(store, "ci") == made
    assert made.state() == "active"
    assert made.state(datetime.now(UTC) + timedelta(hours=3)) == "expired"
    assert list_tenants(store) == {"acme": Limits()}


def test_names_that_do_not_say_which(store):
    create_key(store, "acme", "ci")
    create_key(store, "acme", "ci")
    with pytest.raises(ConflictError, match="2 keys"):
        find_key(store, "ci")
    with pytest.raises(NotFoundError):
        find_key(store, "")
    with pytest.raises(NotFoundError) as raised:
        find_key(store, "lth_" + "x" * 43)
    assert "x" * 43 not in str(raised.value), "a key that was typed is not repeated"


def test_revoking_rotating_and_limits(store):
    made, first = create_key(store, "acme")
    rotated, second = rotate_key(store, made.id, grace="1h")
    assert (rotated.id, rotated.old_digest, rotated.digest) == (made.id, digest_of(first), digest_of(second))
    again, third = rotate_key(store, made.id)
    assert (again.old_digest, again.old_until, again.digest) == (None, None, digest_of(third))
    assert find_key(store, made.id) == again
    assert limit_key(store, made.id, {"tokens_per_day": 10}).limits == Limits(tokens_per_day=10)
    assert limit_key(store, made.id, {"cost_per_day": 1.0, "tokens_per_day": None}).limits == Limits(cost_per_day=1.0)
    assert limit_tenant(store, "acme", {"concurrent_requests": 2}) == tenant_limits(store, "acme")
    gone = revoke_key(store, made.id)
    assert gone.state() == "revoked"
    assert revoke_key(store, made.id) == gone == find_key(store, made.id)
    with pytest.raises(ConflictError, match="revoked"):
        rotate_key(store, made.id)
    with pytest.raises(NotFoundError, match="acme"):
        limit_tenant(store, "acne", {})


def test_each_change_is_in_the_audit_log_and_raises_the_version(store):
    seen = [keys_version(store)]
    made, secret = create_key(store, "acme", actor="user:ann", address="10.1.1.1")
    steps = (
        lambda: rotate_key(store, made.id, actor="user:bob"),
        lambda: limit_key(store, made.id, {"tokens_per_day": 1}),
        lambda: limit_tenant(store, "acme", {"tokens_per_day": 1}),
        lambda: revoke_key(store, made.id),
    )
    for step in steps:
        seen.append(keys_version(store))
        step()
    seen.append(keys_version(store))
    assert seen == sorted(set(seen))
    rows = list_audit(store)[::-1]
    assert [row.action for row in rows] == ["key.create", "key.rotate", "key.limits", "tenant.limits", "key.revoke"]
    assert (rows[0].actor, rows[0].address, rows[1].actor) == ("user:ann", "10.1.1.1", "user:bob")
    assert all(row.tenant == "acme" for row in rows)
    assert secret not in str(rows) and made.digest.hex() not in str(rows)
    verify(store)
    note_last_used(store, {made.id: "2026-01-01T00:00:00.000Z"})
    assert keys_version(store) == seen[-1]
    assert find_key(store, made.id).last_used_at == "2026-01-01T00:00:00.000Z"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tenant": "Acme"}, "tenant must be"),
        ({"tenant": ""}, "tenant must be"),
        ({"tenant": "a/b"}, "tenant must be"),
        ({"scopes": ["inferense"]}, "Did you mean 'inference'"),
        ({"scopes": []}, "at least one"),
        ({"models": []}, "models must be"),
        ({"models": [""]}, "models must be"),
        ({"name": "a\nb"}, "printable"),
        ({"limits": {"requests_per_minut": 1}}, "requests_per_minute"),
        ({"limits": {"requests_per_minute": 0}}, "above 0"),
        ({"limits": {"requests_per_minute": 1.5}}, "whole number"),
        ({"limits": {"cost_per_day": float("nan")}}, "above 0"),
        ({"limits": {"cost_per_day": True}}, "must be a number"),
        ({"expires": "yesterday"}, "span"),
        ({"expires": "2020-01-01"}, "in the future"),
        ({"expires": "0d"}, "in the future"),
        ({"expires": "999999w"}, "span"),
    ],
)
def test_bad_input_names_the_parameter_and_writes_nothing(store, settings, said):
    with pytest.raises(InputError, match=said) as raised:
        create_key(store, **{"tenant": "acme", **settings})
    assert raised.value.exit_code == 2
    assert list_keys(store) == [] and list_audit(store) == []


def test_expiry_is_read_as_utc():
    assert read_expiry("2999-01-31") == "2999-01-31T00:00:00.000Z"
    assert read_expiry("2999-01-31T10:00:00+02:00") == "2999-01-31T08:00:00.000Z"
    at = datetime.fromisoformat(read_expiry("90d"))
    assert timedelta(days=89, hours=23) < at - datetime.now(UTC) <= timedelta(days=90)
