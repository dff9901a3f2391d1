from __future__ import annotations

import pytest

from luthier.core.errors import InputError
from luthier.gateway.access.caller import Caller
from luthier.gateway.access.keys import Keys
from luthier.gateway.config import read_config
from luthier.gateway.knowledge.access import labels_of, may_ask, visible
from luthier.knowledge.index import Filter
from luthier.store.database import open_store
from luthier.store.keys import create_key, find_key
from luthier.store.knowledge import KnowledgeRecord


def test_a_caller_sees_what_its_tenant_and_its_key_see(home):
    store = open_store()
    _, secret = create_key(store, "acme", labels=["board", " board ", "法务"])
    caller = Keys(store=store).caller(f"Bearer {secret}")
    assert labels_of(caller) == ("acme", "board", "法务")
    assert find_key(store, caller.key_id).as_dict()["labels"] == ["board", "法务"]
    assert visible(caller, Filter(after="2026", labels=("other",))) == Filter(after="2026", labels=labels_of(caller))


def test_nobody_over_http_sees_everything():
    for caller in (Caller(), Caller("acme", "k"), Caller(scopes=frozenset({"admin"}))):
        assert visible(caller).labels == (caller.tenant,)


def test_a_tenants_own_base_is_there_for_its_keys_only():
    def base(**meta):
        return KnowledgeRecord("faq", "fake", "d", 8, {"name": "fixed"}, {"name": "lancedb"}, meta=meta)

    assert may_ask(Caller("acme"), base()) and may_ask(Caller("acme"), base(tenant="acme"))
    assert not may_ask(Caller("other"), base(tenant="acme"))
    assert not may_ask(Caller("acme", models=("gpt-*",)), base())
    assert may_ask(Caller("acme", models=("kb:f*",)), base())


@pytest.mark.parametrize("labels", [[""], ["a,b"], ["x" * 65], ["a\nb"], [3]])
def test_labels_that_are_none_are_refused(home, labels):
    with pytest.raises(InputError, match="label"):
        create_key(open_store(), "acme", labels=labels)


def test_the_section_of_the_configuration():
    assert not read_config(None).knowledge
    assert read_config({"knowledge": {"bases": ["handbook"]}}).knowledge.bases == ("handbook",)
    with pytest.raises(InputError, match="Did you mean"):
        read_config({"knowledge": {"base": ["handbook"]}})
