from __future__ import annotations

import pytest

from luthier.cli import main
from luthier.store.audit import list_audit
from luthier.store.database import open_store


@pytest.fixture
def run(home, capsys):
    """(exit code, stdout, stderr) of ``luthier ...``."""

    def ran(*arguments):
        code = 0
        try:
            main(list(arguments))
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return ran


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
