from __future__ import annotations

import json


def test_questions_are_reported(run, tmp_path):
    path = tmp_path / "mill.txt"
    path.write_text(
        "The old mill was built by Jonathan Harrow beside the northern river in the spring of a wet year. " * 2
    )
    assert run("kb", "create", "mill", str(path), "--embedder", "fake")[0] == 0
    target = tmp_path / "questions.jsonl"
    code, out, _ = run("kb", "questions", "mill", "--model", "fake", "-o", str(target))
    assert code == 0 and "0 questions in" in out and "1 chunks were asked about" in out
    report = json.loads(run("kb", "questions", "mill", "--model", "fake", "-o", str(target), "--json")[1])
    assert report["asked"] == 1 and sum(report["dropped"].values()) == 1
    for arguments, said in (
        (("none", "--model", "fake", "-o", "q"), "not known"),
        (("mill", "--model", "none", "-o", "q"), "none"),
        (("mill", "--model", "fake", "-o", "q", "--language", "fr"), "language"),
        (("mill", "--model", "fake", "-o", "q", "--top", "0"), "top must be 1 to 100"),
        (("mill", "-o", "q"), "--model"),
    ):
        code, _, err = run("kb", "questions", *arguments)
        assert code == 2 and said in err, arguments
