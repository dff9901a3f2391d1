from __future__ import annotations

import pytest

from luthier.core.errors import ConflictError, NotFoundError
from luthier.store.batches import (
    cancel_batch,
    claim_batches,
    count_open,
    create_batch,
    find_batch,
    list_batches,
    release,
    renew,
    update_batch,
)

ABOUT = {
    "key_id": "k",
    "endpoint": "/v1/chat/completions",
    "input_file": "file_1",
    "window": "24h",
    "expires_at": "2027-01-01T00:00:00.000Z",
}


def create(store, tenant="acme"):
    return create_batch(store, tenant=tenant, about={"job": "1"}, **ABOUT)


def claimed(store, worker, at_s=100.0, **more):
    return [each.id for each in claim_batches(store, worker, at_s, 10.0, more.pop("limit", 10), **more)]


def test_a_batch_is_its_tenants_only(store):
    made = create(store)
    assert find_batch(store, made.id, "acme") == made == find_batch(store, made.id)
    with pytest.raises(NotFoundError):
        find_batch(store, made.id, "other")
    with pytest.raises(NotFoundError):
        cancel_batch(store, made.id, "other")
    assert list_batches(store, "other") == [] and count_open(store, "other") == 0
    assert count_open(store, "acme") == 1
    body = made.as_dict()
    assert (body["object"], body["status"], body["metadata"]) == ("batch", "validating", {"job": "1"})
    assert body["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert body["expires_at"] == 1798761600 and body["errors"] is None


def test_one_worker_holds_a_batch_until_it_no_longer_says_so(store):
    first, second = create(store), create(store, "other")
    assert claimed(store, "a", limit=1) == [first.id]
    assert claimed(store, "b") == [second.id]
    assert claimed(store, "b", at_s=105.0) == [second.id], "one's own are claimed again"
    assert renew(store, "a", [first.id, second.id], 109.0, 10.0) == {first.id: "validating"}
    assert claimed(store, "b", at_s=112.0) == [second.id]
    assert claimed(store, "b", at_s=120.0) == [first.id, second.id], "a's time is over"
    assert renew(store, "a", [first.id], 121.0, 10.0) == {}
    with pytest.raises(ConflictError):
        update_batch(store, "a", first.id, completed=3)
    release(store, "b", [first.id])
    assert claimed(store, "c", at_s=121.0) == [first.id]
    assert claimed(store, "c", at_s=500.0, tenants=["nobody"]) == []
    assert renew(store, "a", [], 1.0, 1.0) == {}


def test_the_way_of_a_batch(store):
    made = create(store)
    claimed(store, "a")
    update_batch(store, "a", made.id, to="in_progress", total=5)
    update_batch(store, "a", made.id, completed=3, failed=1)
    done = update_batch(store, "a", made.id, to="completed", output_file="file_2")
    assert find_batch(store, made.id) == done
    assert (done.total, done.completed, done.failed, done.worker) == (5, 3, 1, None)
    assert done.as_dict()["completed_at"] >= done.as_dict()["in_progress_at"]
    assert claimed(store, "b", at_s=1e9) == [] and count_open(store, "acme") == 0
    with pytest.raises(ConflictError, match="completed"):
        cancel_batch(store, made.id)


def test_tenants_take_turns(store):
    first = [create(store).id for _ in range(3)]
    other = create(store, "other").id
    assert claimed(store, "a", limit=2) == [first[0], other]


def test_cancelling(store):
    made = create(store)
    claimed(store, "a")
    assert cancel_batch(store, made.id, "acme").status == "cancelling"
    assert cancel_batch(store, made.id, "acme").status == "cancelling"
    assert renew(store, "a", [made.id], 100.0, 10.0) == {made.id: "cancelling"}
    update_batch(store, "a", made.id, to="cancelled")
    with pytest.raises(ConflictError):
        cancel_batch(store, made.id)


def test_pages(store):
    ids = [create(store).id for _ in range(4)]
    assert [each.id for each in list_batches(store, "acme", limit=2)] == [ids[3], ids[2]]
    assert [each.id for each in list_batches(store, "acme", after=ids[2])] == [ids[1], ids[0]]
    assert list_batches(store, states=["completed"]) == []
