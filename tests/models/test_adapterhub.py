"""AdapterHub's layout, held against files and answers of that library (``adapterhub_files/README.md`` says how they were made)."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from luthier.core.errors import DataError, MismatchError, UnsupportedError
from luthier.models.export_adapter import export_adapter
from luthier.models.load import load_model
from luthier.models.pull import pull
from luthier.models.weights import read_tensors
from luthier.store.database import open_store

FILES = Path(__file__).parent / "adapterhub_files"
CASES = sorted(str(path.parent.relative_to(FILES)) for path in FILES.rglob("adapter_config.json"))
IDS = torch.tensor([[5, 9, 30, 7], [8, 6, 40, 11]])
SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64},
}
LENGTH = {"gpt2": "n_positions"}
CLASSES = {"bert": "BertModel", "llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}


@pytest.fixture
def bases(home: Path, tmp_path: Path, tiny_decoder_path: Path, tiny_encoder_path: Path) -> dict[str, str]:
    """The tiny models of the files, their weights made from the parameters' names, pulled under their type."""
    for kind, sizes in SIZES.items():
        config = transformers.AutoConfig.for_model(
            kind, vocab_size=64, **sizes, **{LENGTH.get(kind, "max_position_embeddings"): 16}
        )
        model = getattr(transformers, CLASSES[kind])(config)
        body = model if kind == "bert" else model.base_model
        with torch.no_grad():
            for name, parameter in body.named_parameters():
                drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
                gain = ("norm" in name.lower() or "ln_" in name) and name.endswith("weight")
                parameter.copy_(drawn * 0.2 + (1.0 if gain else 0.0))
        folder = tmp_path / kind
        model.save_pretrained(str(folder))
        tokenizer = tiny_encoder_path if kind == "bert" else tiny_decoder_path
        transformers.AutoTokenizer.from_pretrained(str(tokenizer)).save_pretrained(str(folder))
        pull(f"file:{folder}", alias=kind)
    return {kind: kind for kind in SIZES}


def hidden(name: str) -> torch.Tensor:
    loaded = load_model(open_store(), name, dtype="fp32", device="cpu")
    with torch.no_grad():
        if loaded.architecture == "encoder":
            return loaded.module.body(input_ids=IDS).last_hidden_state
        return loaded.module(input_ids=IDS, output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize("case", CASES)
def test_the_library_s_files_answer_as_there_and_come_out_as_they_were(
    case: str, bases: dict[str, str], tmp_path: Path
) -> None:
    kind = case.split("/")[0]
    made = pull(f"file:{FILES / case}", alias="came", base=bases[kind])
    assert made.base == kind and made.meta["saves"] == "adapter"
    sought = read_tensors(FILES / "answers.safetensors")[case.replace("/", ".")]
    torch.testing.assert_close(hidden("came")[:, : sought.shape[1]], sought, rtol=1e-4, atol=1e-4)
    export_adapter(open_store(), "came", "adapterhub", tmp_path / "out")
    before, after = (read_tensors(folder / "adapter.safetensors") for folder in (FILES / case, tmp_path / "out"))
    assert {key.replace(".task.", ".came.") for key in before} == set(after)
    assert all(torch.equal(tensor, after[key.replace(".task.", ".came.")]) for key, tensor in before.items())
    told, own = (
        json.loads((folder / "adapter_config.json").read_text()) for folder in (FILES / case, tmp_path / "out")
    )
    if not told["config"].get("selfattn_lora", True):  # which matrices of the attention, when it has none
        told["config"].pop("attn_matrices"), own["config"].pop("attn_matrices")
    assert own == told | {"name": "came", "model_name": kind}


def changed(case: str, to: Path, **options: Any) -> Path:
    """A copy of a case with other options."""
    to.mkdir()
    told = json.loads((FILES / case / "adapter_config.json").read_text())
    inner = {key: value for key, value in options.items() if key not in ("version", "hidden_size", "model_type")}
    whole = {key: value for key, value in options.items() if key not in inner}
    (to / "adapter_config.json").write_text(json.dumps(told | whole | {"config": told["config"] | inner}))
    (to / "adapter.safetensors").write_bytes((FILES / case / "adapter.safetensors").read_bytes())
    return to


@pytest.mark.parametrize(
    ("case", "options", "error", "says"),
    [
        ("bert/lora", {"composition_mode": "scale"}, UnsupportedError, "composition_mode='scale' cannot be taken over"),
        ("bert/lora", {"use_gating": True}, UnsupportedError, "PEFT has no gates"),
        ("bert/lora", {"use_dora": True}, UnsupportedError, "its norm leaves alpha out"),
        (
            "bert/lora",
            {"architecture": "reft"},
            UnsupportedError,
            "architecture 'reft' cannot be taken over; lora and bottleneck",
        ),
        ("bert/seq_bn", {"phm_layer": True}, UnsupportedError, "phm_layer=True cannot be taken over"),
        ("bert/seq_bn", {"inv_adapter": "nice"}, UnsupportedError, "it changes the embeddings too"),
        ("bert/seq_bn", {"scaling": 2.0}, UnsupportedError, "scaling=2.0 cannot be taken over"),
        (
            "bert/seq_bn",
            {"non_linearity": "mish"},
            UnsupportedError,
            "non_linearity must be one of relu, .*; got 'mish'",
        ),
        ("bert/lora", {"hidden_size": 768}, MismatchError, "was made for a model with hidden_size 768; bert has 32"),
        ("llama/lora", {}, MismatchError, "was made for a model with model_type llama; bert has bert"),
    ],
)
def test_what_is_refused(
    case: str, options: dict[str, Any], error: type[Exception], says: str, bases: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        pull(f"file:{changed(case, tmp_path / 'in', **options)}", alias="x", base=bases["bert"])


def test_files_that_are_pickled_or_cut_short(bases: dict[str, str], tmp_path: Path) -> None:
    folder = changed("bert/lora", tmp_path / "in")
    weights = folder / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"adapter\.safetensors: the safetensors header promises"):
        pull(f"file:{folder}", alias="x", base="bert")
    weights.unlink()
    (folder / "pytorch_adapter.bin").write_bytes(b"x")
    with pytest.raises(
        UnsupportedError, match=r"pytorch_adapter\.bin is pickled and never loaded.*\n.*use_safetensors=True"
    ):
        pull(f"file:{folder}", alias="x", base="bert")


def test_earlier_versions_did_not_scale_lora(bases: dict[str, str], tmp_path: Path) -> None:
    pull(f"file:{changed('bert/lora', tmp_path / 'old', version='adapters.1.0.1')}", alias="old", base="bert")
    pull(f"file:{changed('bert/lora', tmp_path / 'same', alpha=2)}", alias="same", base="bert")
    torch.testing.assert_close(hidden("old"), hidden("same"))


def test_earlier_names_of_activations(bases: dict[str, str], tmp_path: Path) -> None:
    folder = changed("bert/double_seq_bn", tmp_path / "old", non_linearity="gelu")
    path = folder / "adapter_config.json"
    told = json.loads(path.read_text())
    told.pop("version")
    path.write_text(json.dumps(told))
    pull(f"file:{folder}", alias="old", base="bert")
    pull(f"file:{changed('bert/double_seq_bn', tmp_path / 'now', non_linearity='gelu_new')}", alias="now", base="bert")
    torch.testing.assert_close(hidden("old"), hidden("now"), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target_modules": ["o_proj"]}, "no place for a LoRA at model.layers.0.self_attn.o_proj"),
        ({"target_modules": ["q_proj"], "use_dora": True}, "use_dora=True"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, "it trains modules of the base whole"),
        (
            {"target_modules": ["q_proj"], "rank_pattern": {"layers.0.self_attn.q_proj": 2}},
            "one rank and one alpha for all layers",
        ),
        (
            {"target_modules": ["layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj"]},
            "the same layers in every block",
        ),
    ],
)
def test_what_that_layout_cannot_hold(options: dict[str, Any], says: str, tiny_decoder: str, tmp_path: Path) -> None:
    from tests.models.test_combine import adapter

    adapter(tiny_decoder, "a", 1, **options)
    with pytest.raises(UnsupportedError, match=rf"(?s){says}.*--format peft"):
        export_adapter(open_store(), "a", "adapterhub", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rank_stabilised_scaling_becomes_an_alpha(tiny_decoder: str, tmp_path: Path) -> None:
    from tests.models.test_combine import adapter
    from tests.models.test_pull_adapter import answer

    adapter(tiny_decoder, "a", 1, target_modules=["q_proj", "v_proj"], use_rslora=True)
    export_adapter(open_store(), "a", "adapterhub", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["config"]["alpha"] == 16
    pull(f"file:{tmp_path / 'out'}", alias="back", base=tiny_decoder)
    torch.testing.assert_close(answer("back"), answer("a"))


def test_other_methods_and_models(tiny_decoder: str, tiny_decoder_path: Path, tmp_path: Path) -> None:
    from tests.models.test_pull_adapter import foreign

    foreign(tiny_decoder_path, peft.LoHaConfig(r=4, target_modules=["q_proj"]), tmp_path / "in")
    pull(f"file:{tmp_path / 'in'}", alias="a", base=tiny_decoder)
    with pytest.raises(
        UnsupportedError, match="can hold LoRA and bottleneck adapters; this one is of PEFT's type LOHA"
    ):
        export_adapter(open_store(), "a", "adapterhub", tmp_path / "out")
