from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from luthier.core.errors import DataError, StoreError
from luthier.models.weights import check_file, check_folder, read_tensors, write_tensors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, str(path))
    return path


def test_a_whole_file_is_read(path: Path) -> None:
    assert check_file(path)["a"]["shape"] == [2, 3]
    check_folder(path.parent)
    assert read_tensors(path)["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("kept", [0, 4, 20, -1])
def test_a_file_cut_short_is_named(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"model\.safetensors"):
        check_file(path)


def test_damage_is_named(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + b"x" * 20 + whole[28:])
    with pytest.raises(DataError, match="header is damaged"):
        read_tensors(path)
    path.write_bytes(b"PK\x03\x04" + b"\x00" * 200)  # a pickle in a zip
    with pytest.raises(DataError, match=r"model\.safetensors"):
        read_tensors(path)
    header = json.dumps({"a": 1}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(DataError, match="header is damaged"):
        check_file(path)


def test_data_after_the_last_tensor_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DataError, match="promises"):
        check_file(path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no"):
        check_folder(tmp_path)
    with pytest.raises(DataError, match=r"none\.safetensors"):
        read_tensors(tmp_path / "none.safetensors")


def test_views_are_written_and_a_refusing_disk_is_reported(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "a.safetensors", {"turned": whole.T, "part": whole[1:]})
    found = read_tensors(tmp_path / "a.safetensors")
    assert torch.equal(found["turned"], whole.T)
    assert torch.equal(found["part"], whole[1:])
    with pytest.raises(StoreError, match="No such file"):
        write_tensors(tmp_path / "none" / "a.safetensors", {"whole": whole})


def test_a_full_disk_is_said_in_words_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StoreError, match=r"the disk is full: cannot write .*x\.safetensors; 12 bytes") as raised:
        write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(3)})
    assert raised.value.hint is not None and "free space" in raised.value.hint
