"""One model against itself: torch, llama.cpp, a remote API; and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from luthier.core.errors import InputError, MismatchError, NotFoundError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.evaluation.parity import Parity, check_identity, check_parity, refuse_differences
from luthier.evaluation.parity_compare import Comparison
from luthier.evaluation.parity_prompts import built_in
from luthier.models.export import export
from luthier.models.pull import pull
from luthier.store.database import open_store
from luthier.store.models import find, list_models, register


@pytest.fixture(scope="session")
def sharp_path(tiny_decoder_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny decoder with large random weights: its greedy choices are clear."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sharp")
    config = transformers.AutoConfig.from_pretrained(str(tiny_decoder_path), initializer_range=0.4)
    transformers.LlamaForCausalLM(config).save_pretrained(str(folder))
    transformers.AutoTokenizer.from_pretrained(str(tiny_decoder_path)).save_pretrained(str(folder))
    return folder


@pytest.fixture
def sharp(home: Path, sharp_path: Path) -> str:
    return pull(f"file:{sharp_path}", alias="sharp").name


def by(found: Parity, right: str) -> dict[str, Comparison]:
    return {c.what: c for c in found.comparisons if c.right == right}


def test_torch_and_llamacpp_agree_and_nothing_is_left_behind(sharp: str) -> None:
    found = check_parity(sharp, against=["torch:bf16", "llamacpp:F32"], n=5, tokens=5)
    assert found.agrees, [c for c in found.comparisons if c.verdict == "differs"]
    llama = by(found, "llama.cpp F32")
    assert {what: c.verdict for what, c in llama.items()} | {"greedy answers": "equal"} == {
        "prompt ids": "equal",
        "own tokenizer": "equal",
        "stop tokens": "equal",
        "log-probabilities": "within",
        "likeliest token": "equal",
        "greedy answers": "equal",
    }
    assert llama["log-probabilities"].worst is not None and llama["log-probabilities"].worst < 1e-3
    assert {"prompt ids", "log-probabilities", "likeliest token", "greedy answers"} <= by(found, "torch bf16").keys()
    assert by(found, "torch fp32, served")["scores of answers"].worst < 1e-4  # type: ignore[operator]
    assert by(found, "training")["loss mask"].verdict == "equal"
    assert list_models(open_store(), "export") == [], "what was exported for it is gone"
    assert found.as_dict()["agrees"] is True


def test_exports_that_are_there_are_checked_and_kept(sharp: str) -> None:
    made = export(sharp, type="Q8_0")
    found = check_parity(sharp, against=["llamacpp"], n=2, tokens=2)
    assert by(found, "llama.cpp Q8_0") and not by(found, "llama.cpp F16")
    assert [r.name for r in list_models(open_store(), "export")] == [made.name]
    again = check_parity(made.name, against=["llamacpp"], n=2, tokens=2)
    assert by(again, "llama.cpp Q8_0"), "an export is checked against what it was made of"


def test_weights_that_are_not_the_same_are_found(sharp: str, sharp_path: Path, tmp_path: Path) -> None:
    """An export whose weights were made from another model: everything must be equal is, the numbers are not."""
    store = open_store()
    torch.manual_seed(9)
    model = transformers.LlamaForCausalLM.from_pretrained(str(sharp_path))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(str(tmp_path / "other"))
    transformers.AutoTokenizer.from_pretrained(str(sharp_path)).save_pretrained(str(tmp_path / "other"))
    pull(f"file:{tmp_path / 'other'}", alias="other")
    wrong = export("other", type="F32")
    right = find(store, sharp)
    meta = {**wrong.meta, "target": sharp, "target_digest": right.digest}
    register(store, ModelRecord("wrong", "export", "decoder", wrong.digest, base=sharp, meta=meta))
    found = check_parity("wrong", against=["llamacpp"], n=3, tokens=4)
    assert not found.agrees
    wrong_ones = {c.what for c in found.comparisons if c.verdict == "differs"}
    assert "log-probabilities" in wrong_ones and "prompt ids" not in wrong_ones


def test_only_what_must_be_equal(sharp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    base = find(store, sharp)
    assert check_identity(store, base, built_in(3)) == [], "a base that was not trained here has no mask"
    cases = built_in(16)
    found = check_identity(store, base, cases, llama_type="F16")
    assert [(c.what, c.verdict) for c in found] == [
        ("prompt ids", "equal"),
        ("own tokenizer", "equal"),
        ("stop tokens", "equal"),
    ]
    assert found[1].of == 15 and "markup" in found[1].note
    refuse_differences(found, sharp)
    from luthier.engines._llamacpp_probe import LlamaProbe

    monkeypatch.setattr(LlamaProbe, "ends_answer", lambda self, before, tokens: frozenset({0}))
    broken = check_identity(store, base, cases, llama_type="F16")
    with pytest.raises(MismatchError, match=r"stop tokens: renderer against llama\.cpp F16, answers do not end at 2"):
        refuse_differences(broken, sharp)


def test_what_cannot_be_compared(sharp: str, tiny_encoder: str) -> None:
    with pytest.raises(UnsupportedError, match="encoder"):
        check_parity(tiny_encoder)
    with pytest.raises(NotFoundError):
        check_parity("nothing")
    with pytest.raises(InputError, match="against must be"):
        check_parity(sharp, against=["vllm"])
    with pytest.raises(InputError, match="llamacpp takes F32"):
        check_parity(sharp, against=["llamacpp:Q2"])
    with pytest.raises(InputError, match="torch takes auto"):
        check_parity(sharp, against=["torch:int8"])
    with pytest.raises(InputError, match="tokens must be"):
        check_parity(sharp, tokens=0)
