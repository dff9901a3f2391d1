from __future__ import annotations

import json

STATED = '{"relations": [{"source": "Greta Olsen", "relation": "comes from", "target": "Bergen"}]}'


def test_build_show_and_search(run, tmp_path, monkeypatch):
    from luthier.engines import fake

    def answering(model, config):
        return opened(model, config.model_copy(update={"answers": {"Greta": STATED}}))

    opened = fake.open
    monkeypatch.setattr(fake, "open", answering)
    file = tmp_path / "life.txt"
    file.write_text("Greta Olsen comes from Bergen.", encoding="utf-8")
    assert run("kb", "create", "people", str(file), "--embedder", "fake")[0] == 0
    code, _, err = run("kb", "graph", "people")
    assert code == 2 and "luthier kb graph people --model" in err
    code, out, err = run("kb", "graph", "people", "--model", "fake")
    assert code == 0 and "2 entities, 1 relations in 1 chunks (1 read now, 0 gone)" in out and "read: 1/1" in err
    assert json.loads(run("kb", "graph", "people", "--json")[1])["relations"] == 1
    assert "comes from" in run("kb", "graph", "people", "--about", "bergen")[1]
    code, _, err = run("kb", "graph", "people", "--about", "Oslo")
    assert code == 2 and "knows nothing about 'Oslo'" in err
    assert run("kb", "graph", "people", "--retry")[0] == 2
    code, out, _ = run("kb", "search", "people", "Where is Greta Olsen from?", "--retrieval", "graph", "--json")
    assert code == 0 and json.loads(out)[0]["meta"]["path"] == "Greta Olsen — comes from — Bergen"
