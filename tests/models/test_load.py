from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from luthier.core.errors import DataError, InputError, NotFoundError, UnsupportedError
from luthier.core.message import user
from luthier.core.model import ModelRecord
from luthier.models import load
from luthier.models.load import choose_device, choose_dtype, cpu_has_bf16, load_folder, load_model, set_threads
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.store.models import find, register


def test_a_decoder_loads_as_transformers_loads_it(tiny_decoder: str) -> None:
    from transformers import AutoModelForCausalLM

    store = open_store()
    loaded = load_model(store, tiny_decoder, dtype="fp32", device="cpu")
    folder = path_of(store, find(store, tiny_decoder).digest)
    reference = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    assert loaded.renderer is not None
    ids = torch.tensor([loaded.renderer.prompt_ids(user("Where is my parcel?"))])
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(ids).logits, reference(ids).logits)
    assert loaded.record == loaded.base
    assert loaded.context_length == 512
    assert loaded.template_digest == loaded.renderer.digest != ""
    assert not loaded.module.training


def test_an_encoder_loads_with_new_labels(tiny_encoder: str) -> None:
    loaded = load_model(open_store(), tiny_encoder, dtype="fp32", labels=("a", "b", "c"))
    ids = torch.tensor([[2, 7, 8, 3]])
    assert loaded.module(ids, torch.ones_like(ids)).shape == (1, 3)
    assert loaded.labels == ("a", "b", "c")
    assert loaded.renderer is None and loaded.template_digest == ""
    assert loaded.context_length == 128
    assert loaded.module.body.pooler is None


def test_bf16_is_kept(tiny_decoder: str) -> None:
    loaded = load_model(open_store(), tiny_decoder, dtype="bf16")
    assert {p.dtype for p in loaded.module.parameters()} == {torch.bfloat16}
    assert loaded.dtype == torch.bfloat16


def test_unknown_names_and_kinds_without_weights(home: Path) -> None:
    store = open_store()
    with pytest.raises(NotFoundError, match="pull"):
        load_model(store, "smollm2-135m")
    register(store, ModelRecord("winner", "endpoint", "decoder", "", meta={"target": "x"}))
    with pytest.raises(UnsupportedError, match="endpoint"):
        load_model(store, "winner")


RECORD = ModelRecord("copy", "base", "decoder", "0" * 64)


@pytest.fixture
def copy(tiny_decoder_path: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(tiny_decoder_path, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "zeros"])
def test_damaged_files_are_data_errors(copy: Path, name: str, damage: str) -> None:
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: len(whole) // 2] if damage == "cut" else bytes(len(whole)))
    with pytest.raises(DataError, match=str(copy)):
        load_folder(copy, RECORD, RECORD)


def test_weights_that_do_not_belong_to_the_config(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(DataError, match="lack"):
        load_folder(copy, RECORD, RECORD)
    (copy / "config.json").write_text(json.dumps(config | {"hidden_size": 16}))
    with pytest.raises(DataError, match=str(copy)):
        load_folder(copy, RECORD, RECORD)


def test_pickled_weights_are_not_read(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(DataError, match="safetensors"):
        load_folder(copy, RECORD, RECORD)


def test_bf16_is_chosen_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_has_bf16("processor: 0\nflags\t\t: sse avx512f avx512_bf16\n")
    assert cpu_has_bf16("flags : amx_bf16 amx_tile")
    assert cpu_has_bf16("Features\t: fp asimd bf16 i8mm")
    assert not cpu_has_bf16("flags : sse avx2 avx512f")
    assert not cpu_has_bf16("")
    monkeypatch.setattr(load, "cpu_has_bf16", lambda: True)
    assert choose_dtype() == torch.bfloat16
    monkeypatch.setattr(load, "cpu_has_bf16", lambda: False)
    assert choose_dtype() == torch.float32
    assert choose_dtype("bf16") == torch.bfloat16


def test_wrong_dtype_device_threads() -> None:
    with pytest.raises(InputError, match="auto, bf16, fp16, fp32; got 'float8'"):
        choose_dtype("float8")
    with pytest.raises(InputError, match="GPU"):
        choose_dtype("fp16", torch.device("cpu"))
    with pytest.raises(InputError, match="got 'tpu9'"):
        choose_device("tpu9")
    with pytest.raises(InputError, match="cuda"):
        choose_device("cuda:99")
    with pytest.raises(InputError, match="threads must be >= 1; got 0"):
        set_threads(0)


def test_threads_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert set_threads() == torch.get_num_threads()
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert set_threads() == load.usable_cores() >= 1
        assert set_threads(1) == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
