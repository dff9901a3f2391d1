from __future__ import annotations

from luthier.store.audit import list_audit
from luthier.store.database import open_store


def test_the_audit_log_is_listed_and_verified(run):
    assert "nothing" in run("audit")[2]
    assert "empty" in run("audit", "verify")[2]
    run("keys", "create", "acme", "--name", "ci")
    run("keys", "revoke", "ci")
    listed = run("audit")[1]
    assert listed.index("key.revoke") < listed.index("key.create")
    assert "key.create" not in run("audit", "--action", "key.revoke")[1]
    code, out, _ = run("audit", "verify")
    assert (code, out.strip()) == (0, list_audit(open_store())[0].hash)
    assert run("audit", "verify", "--expect", out.strip())[0] == 0
    code, _, err = run("audit", "verify", "--expect", "0" * 63 + "1")
    assert code == 4 and "cut" in err
    assert run("audit", "verify", "--expect", "abc")[0] == 2
