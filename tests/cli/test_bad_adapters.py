"""Adapters and methods that cannot work: said before any work starts, with what can be done instead, and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.models.test_combine import LABELS, adapter
from tests.models.test_inspect_adapter import tuned
from tests.models.test_pull_adapter import KINDS, foreign

from luthier.cli import main
from luthier.models.pull import pull
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.store.models import find, list_models
from luthier.store.runs import list_runs

ROWS = [
    {"text": f"{word} number {i}", "label": label} for i in range(8) for word, label in (("pay", "a"), ("box", "b"))
]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as raised:
        main(list(arguments))
    return int(raised.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said; nothing may have been made, and no weights may have been read for it."""
    capsys.readouterr()
    store = open_store()
    before = ({record.name for record in list_models(store)}, len(list_runs(store)))
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err and any(line.startswith("error: ") for line in said.err.splitlines())
    assert ({record.name for record in list_models(store)}, len(list_runs(store))) == before
    return said.err


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def run_file(rows: Path, tiny_decoder: str) -> str:
    path = rows.parent / "run.yaml"
    path.write_text(
        f"model: {tiny_decoder}\ndata: {{path: rows.jsonl}}\nmethod: lora\nname: router\ntrain: {{epochs: 1, dtype: fp32, device: cpu}}\n"
    )
    return str(path)


@pytest.fixture
def task(rows: Path, tiny_decoder: str) -> str:
    path = rows.parent / "task.yaml"
    path.write_text(f"name: sort\ndata: {{path: rows.jsonl}}\nmodels: {{decoder: {tiny_decoder}}}\nentrants: [lora]\n")
    return str(path)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method.targets=[q_prj]"], r"got 'q_prj', which matches none. Did you mean 'q_proj'"),
        (["method=ia3", "method.outputs=[v_prj]"], "Did you mean 'v_proj'"),
        (["method.rank=33"], "method.rank must be at most 16, the smaller side of"),
        (["method.ranks={q_proj: 40}"], "method.ranks must be at most 32"),
        (["method=linear_probe"], "needs a model of architecture encoder"),
        (["method=bitfit"], "has none"),
        (["method=adapter", "method.bottleneck=900"], "bottleneck"),
        (["method=freeze", "method.last=9"], "9"),
        (["method=lroa"], "Did you mean 'lora'"),
        (["method=lora", "method.rnk=4"], "Did you mean 'rank'"),
    ],
)
def test_a_method_that_cannot_go_in(
    overrides: list[str], says: str, run_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, "tune", run_file, *overrides)


def test_an_adapter_of_another_base_or_vocabulary(
    tiny_decoder: str,
    tiny_encoder: str,
    tiny_decoder_path: Path,
    tiny_gpt2_path: Path,
    task: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from transformers import AutoTokenizer

    foreign(tiny_decoder_path, KINDS["lora"], tmp_path / "in")
    source = f"file:{tmp_path / 'in'}"
    assert "does not fit tiny-encoder" in refused(capsys, "pull", source, "--base", tiny_encoder)
    assert "luthier pull" in refused(capsys, "pull", source, "--base", "smollm2-135m")
    assert "needs the model that it goes on" in refused(capsys, "pull", source)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_decoder_path))
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(str(tmp_path / "in"))
    assert "another vocabulary than tiny-decoder" in refused(capsys, "pull", source, "--base", tiny_decoder)
    adapter(tiny_decoder, "mine", 1)
    pull(f"file:{tiny_gpt2_path}", alias=tiny_decoder, force=True)  # another model under the base's name
    said = refused(capsys, "eval", "mine", task)
    assert "was trained on tiny-decoder with digest" in said and "Pull the base that it was trained on" in said


def test_a_truncated_file(
    tiny_decoder: str, tiny_decoder_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign(tiny_decoder_path, KINDS["lora"], tmp_path / "in")
    path = tmp_path / "in" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert "the safetensors header promises" in refused(
        capsys, "pull", f"file:{tmp_path / 'in'}", "--base", tiny_decoder
    )


def test_a_truncated_file_in_the_store(tiny_decoder: str, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    adapter(tiny_decoder, "mine", 1)
    path = path_of(open_store(), find(open_store(), "mine").digest) / "adapter_model.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-7])
    code = run("eval", "mine", task)
    said = capsys.readouterr().err
    assert code in (2, 4) and "adapter_model.safetensors" in said and "Traceback" not in said


@pytest.mark.parametrize("method", ["pfeiffer_adapter", "prompt"])
def test_a_method_that_llama_cpp_cannot_serve(
    method: str, tiny_decoder: str, task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned(tiny_decoder, "mine", method)
    served = {"torch": "swap", "llamacpp": "no"}
    from dataclasses import replace

    from luthier.store.models import register

    record = find(open_store(), "mine")
    register(open_store(), replace(record, meta={**record.meta, "serving": served}), replace=True)

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("weights were read before it was refused")

    monkeypatch.setattr("luthier.models.load.load_folder", loaded)
    for arguments in (
        ("eval", "mine", task, "--engine", "llamacpp"),
        ("export", "mine"),
        ("export", "mine", "--merge"),
        ("adapters", "merge", "mine"),
        ("serve", "mine", "--engine", "llamacpp", "--port", "0"),
    ):
        said = refused(capsys, *arguments)
        assert f"mine was made by {method}" in said and "--engine torch" in said, arguments
    said = refused(capsys, "tournament", task, "--engine", "llamacpp", f"entrants=[{method}]")
    assert f"entrant {method}" in said and "cannot be served by engine llamacpp; it can by torch" in said
    said = refused(capsys, "tournament", task, "entrants=[{model: mine, engine: llamacpp}]")
    assert "mine cannot be served by engine llamacpp; it can by torch" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("export", "mine", "--format", "onnx", "--out", "x"), "--format must be gguf, peft or adapterhub; got 'onnx'"),
        (("export", "mine", "--format", "peft"), "luthier export mine --format peft --out FOLDER"),
        (("export", "mine", "--format", "peft", "--type", "Q8_0", "--out", "x"), "--type goes with --format gguf"),
        (("export", "tiny-decoder", "--format", "peft", "--out", "x"), "not something that tuning made"),
        (("export", "mine", "--format", "adapterhub", "--out", "."), "must be a new or an empty folder"),
    ],
)
def test_exports_that_make_no_sense(
    arguments: tuple[str, ...],
    says: str,
    tiny_decoder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").write_text("")
    adapter(tiny_decoder, "mine", 1)
    assert says in refused(capsys, *arguments)
    assert not (tmp_path / "x").exists()


def test_out_and_in_again(tiny_encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter(tiny_encoder, "sorter", 1, LABELS, target_modules=["query", "value"])
    for layout in ("peft", "adapterhub"):
        folder = tmp_path / layout
        assert run("export", "sorter", "--format", layout, "--out", str(folder)) == 0
        assert "adapter_config.json" in capsys.readouterr().out
        assert run("pull", f"file:{folder}", "--base", tiny_encoder, "--name", f"from-{layout}") == 0
        said = capsys.readouterr()
        assert f"from-{layout}  lora on tiny-encoder" in said.out and "torch swap" in said.out
        assert f"luthier adapters inspect from-{layout}" in said.err
    assert run("export", "sorter", "--format", "peft", "--out", str(tmp_path / "j"), "--json") == 0
    assert set(json.loads(capsys.readouterr().out)["files"]) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
    }
