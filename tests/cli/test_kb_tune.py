from __future__ import annotations

import json

import pytest


@pytest.fixture
def shop(run, tmp_path, tiny_encoder):
    rows = []
    for thing in ("parcel", "courier", "refund", "deposit", "violin", "lesson"):
        (tmp_path / f"{thing}.txt").write_text(f"About the {thing}: {thing[::-1]} is its mark.")
        rows += [
            {"question": f"{how} the {thing}?", "answers": [thing[::-1]], "source": f"{thing}.txt"}
            for how in ("What is the mark of", "Which sign has")
        ]
    files = [str(tmp_path / f"{row['source']}") for row in rows[::2]]
    assert run("kb", "create", "shop", *files, "--embedder", tiny_encoder)[0] == 0
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_tune_and_sft_data(run, shop, tmp_path):
    code, out, err = run("kb", "tune", "shop", "train.max_steps=1", "--questions", str(shop), "--name", "better-shop")
    assert code == 0, err
    assert "better-shop: tiny-encoder tuned on" in out and "recall@5" in out and "95% interval" in out
    assert "better-shop" in run("models")[1]
    target = tmp_path / "train.jsonl"
    code, out, err = run("kb", "sft-data", "shop", "--questions", str(shop), "-o", str(target), "--distractors", "2")
    assert code == 0 and "12 rows in" in out.replace("\n", " "), (out, err)
    plain = json.loads(run("kb", "sft-data", "shop", "--questions", str(shop), "-o", str(target), "--json")[1])
    assert plain["rows"] == len(target.read_text().splitlines()) == 12


def test_what_is_wrong_is_said(run, shop):
    for arguments, said in (
        (("tune", "none", "--questions", str(shop)), "not known"),
        (("tune", "shop", "--questions", "none.jsonl"), "none.jsonl"),
        (("tune", "shop", "--questions", str(shop), "--held-out", "7"), "held_out"),
        (("tune", "shop", "--questions", str(shop), "--method", "none"), "none"),
        (("tune", "shop", "train.epoch=2", "--questions", str(shop)), "epochs"),
        (("sft-data", "shop", "--questions", str(shop), "-o", "t", "--drop-gold", "1"), "drop_gold"),
        (("sft-data", "shop", "--questions", "none.jsonl", "-o", "t"), "none.jsonl"),
    ):
        code, _, err = run("kb", *arguments)
        assert code == 2 and said in err, (arguments, err)
        assert "Traceback" not in err
