from __future__ import annotations

import json


def test_chunks_of_a_file_and_of_a_base(run, tmp_path):
    path = tmp_path / "mill.md"
    path.write_text("# Mill\n\n" + "It stands where two rivers meet. " * 20 + "\n\n## 水轮\n\n水轮在这里。\n")
    options = ("--chunker", "recursive", "-o", "chunker.tokens=40", "-o", "chunker.overlap=10")
    code, out, _ = run("kb", "chunks", "--file", str(path), *options, "--embedder", "fake")
    assert code == 0
    for said in (str(path), "#0", "tokens", "Mill", "«It stands where two rivers meet.", "overlap", "median", "█"):
        assert said in out
    plain = json.loads(run("kb", "chunks", "--file", str(path), *options, "--embedder", "fake", "--json")[1])
    assert plain["sizes"]["chunks"] == len(plain["chunks"]) > 3 and plain["sizes"]["most"] <= 40
    assert run("kb", "create", "mill", str(path), "--embedder", "fake", *options)[0] == 0
    kept = json.loads(run("kb", "chunks", "mill", "mill.md", "--json")[1])
    assert [each["text"] for each in kept["chunks"]] == [each["text"] for each in plain["chunks"]]
    assert "shown are 2 of" in run("kb", "chunks", "mill", "--most", "2")[2]


def test_what_is_wrong_is_said(run, tmp_path):
    path = tmp_path / "mill.md"
    path.write_text("One.")
    for arguments, said in (
        ((), "name a knowledge base or a --file"),
        (("none",), "not known"),
        (("mill", "--file", str(path)), "name a knowledge base or a --file"),
        (("mill", "--chunker", "fixed"), "--chunker"),
        (("--file", str(path), "-o", "chunker.token=3"), "tokens"),
        (("--file", str(path), "-o", "index.metric=dot"), "index"),
        (("--file", str(path), "--chunker", "none"), "none"),
        (("--file", str(tmp_path / "none.md")), "none.md"),
        (("--file", str(path), "--chunker", "question_answer", "--embedder", "fake"), "chunker.model"),
    ):
        code, out, err = run("kb", "chunks", *arguments)
        assert code == 2 and said in err and not out, arguments
        assert "Traceback" not in err
