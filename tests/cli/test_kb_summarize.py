from __future__ import annotations

import json


def test_a_file_and_a_document_of_a_base(run, tmp_path):
    file = tmp_path / "story.md"
    file.write_text("\n\n".join(f"# Chapter {n}\n\n{'words of the story ' * 60}" for n in range(60)), encoding="utf-8")
    code, out, err = run("kb", "summarize", str(file), "--model", "fake", "--tokens", "50", "--piece-tokens", "1500")
    assert code == 0 and out.strip() and "read: " in err
    code, again, err = run(
        "kb", "summarize", str(file), "--model", "fake", "--tokens", "50", "--piece-tokens", "1500", "--json"
    )
    found = json.loads(again)
    assert len(found["pieces"]) == 10 and found["pieces"][0]["cited"] == "line 1 to line 25"
    assert run("kb", "create", "books", str(file), "--embedder", "fake")[0] == 0
    code, out, _ = run(
        "kb", "summarize", "books", str(file), "--model", "fake", "--style", "refine", "--tokens", "50", "--json"
    )
    assert code == 0 and json.loads(out)["text"]


def test_wrong_input_is_said(run, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("text")
    for arguments, said in (
        ((str(tmp_path / "none.txt"),), "no such file"),
        ((str(file), "--style", "stuff"), "style must be one of map_reduce, refine"),
        ((str(file), "--language", "fr"), "language must be en or zh"),
        (("nobase", "doc"), "knowledge base 'nobase' is not known"),
        (("http://127.0.0.1/x",), "private network"),
    ):
        code, _, err = run("kb", "summarize", *arguments, "--model", "fake")
        assert code == 2 and said in err, arguments
