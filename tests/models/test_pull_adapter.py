"""Adapters of others become tuned models that answer as they did there, and the way out gives back what came in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from luthier.core.errors import DataError, InputError, MismatchError, UnsupportedError
from luthier.models.attach import attach, load_base, select
from luthier.models.export import export
from luthier.models.export_adapter import export_adapter
from luthier.models.load import load_model
from luthier.models.pull import pull
from luthier.models.weights import read_tensors, write_tensors
from luthier.store.database import open_store
from luthier.store.models import find, list_models

IDS = torch.tensor([[5, 9, 30, 7], [8, 6, 40, 11]])
TARGETS = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False),
    "dora": peft.LoraConfig(r=4, target_modules=TARGETS, use_dora=True, init_lora_weights=False),
    "ia3": peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": peft.LoHaConfig(r=4, target_modules=TARGETS, init_weights=False),
    "lokr": peft.LoKrConfig(r=4, target_modules=TARGETS, init_weights=False),
    "vera": peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
    "oft": peft.OFTConfig(oft_block_size=8, target_modules=TARGETS),
    "peft": peft.HRAConfig(r=4, target_modules=TARGETS, init_weights=False),
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p_tuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16),
    "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def foreign(folder: Path, config: Any, out: Path, auto: Any = AutoModelForCausalLM) -> torch.Tensor:
    """Save a random adapter with plain PEFT; returns what the adapted model answers."""
    torch.manual_seed(1)
    model = auto.from_pretrained(str(folder), attn_implementation="eager").eval()
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for _name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        answer = wrapped.eval()(input_ids=IDS)[0]
    wrapped.save_pretrained(str(out))
    return answer


def answer(name: str) -> torch.Tensor:
    """What a stored model answers; a soft prompt's own positions come before the text's in PEFT's answers and in these."""
    with torch.no_grad():
        loaded = load_model(open_store(), name, dtype="fp32", device="cpu")
        module = loaded.module if loaded.architecture == "decoder" else loaded.module.body
        return module(input_ids=IDS)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_peft_comes_in_answers_the_same_and_goes_out_equal(
    kind: str, tiny_decoder: str, tiny_decoder_path: Path, tmp_path: Path
) -> None:
    sought = foreign(tiny_decoder_path, KINDS[kind], tmp_path / "in")
    made = pull(f"file:{tmp_path / 'in'}", alias="came", base=tiny_decoder)
    assert (made.kind, made.base, made.architecture, made.meta["method"]) == ("adapter", tiny_decoder, "decoder", kind)
    torch.testing.assert_close(answer("came"), sought, rtol=1e-4, atol=1e-5)
    export_adapter(open_store(), "came", "peft", tmp_path / "out")
    before, after = (read_tensors(tmp_path / f / "adapter_model.safetensors") for f in ("in", "out"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    told = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == tiny_decoder
    model = AutoModelForCausalLM.from_pretrained(str(tiny_decoder_path), attn_implementation="eager")
    back = peft.PeftModel.from_pretrained(model, str(tmp_path / "out")).eval()
    with torch.no_grad():
        torch.testing.assert_close(back(input_ids=IDS)[0], sought, rtol=1e-4, atol=1e-5)


def test_an_adapter_beside_one_of_ours_and_found_again(
    tiny_decoder: str, tiny_decoder_path: Path, tmp_path: Path
) -> None:
    foreign(tiny_decoder_path, KINDS["lora"], tmp_path / "in")
    made = pull(f"file:{tmp_path / 'in'}", alias="came", base=tiny_decoder)
    assert made.meta["serving"] == {"torch": "swap", "llamacpp": "swap"} and made.meta[
        "trainable_parameters"
    ] == 2 * 4 * (64 + 48 + 96)
    assert pull(f"file:{tmp_path / 'in'}", alias="came").created_at == made.created_at  # nothing was fetched again
    base = load_base(open_store(), find(open_store(), tiny_decoder), dtype="fp32", device="cpu")
    attach(base, made, "came")
    select(base, "came")
    torch.testing.assert_close(base.module(input_ids=IDS)[0], answer("came"))
    assert export("came").meta["holds"] == "lora"


def test_the_base_that_the_adapter_names(tiny_decoder: str, tiny_decoder_path: Path, tmp_path: Path) -> None:
    foreign(tiny_decoder_path, KINDS["lora"], tmp_path / "in")
    path = tmp_path / "in" / "adapter_config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"base_model_name_or_path": tiny_decoder}))
    assert pull(f"file:{tmp_path / 'in'}", alias="came").base == tiny_decoder
    path.write_text(json.dumps(told | {"base_model_name_or_path": "org/big"}))
    with pytest.raises(
        InputError, match=r"made for 'org/big', which is not here\n.*--base NAME. Models here: tiny-decoder"
    ):
        pull(f"file:{tmp_path / 'in'}", alias="other")
    with pytest.raises(InputError, match="base is for adapters"):
        pull(f"file:{tiny_decoder_path}", alias="x", base=tiny_decoder)


def test_an_encoder_body_with_and_without_the_class_around_it(
    tiny_encoder: str, tiny_encoder_path: Path, tmp_path: Path
) -> None:
    config = peft.LoraConfig(r=2, target_modules=["query", "output.dense"], init_lora_weights=False)
    sought = foreign(tiny_encoder_path, config, tmp_path / "in", AutoModel)
    pull(f"file:{tmp_path / 'in'}", alias="body", base=tiny_encoder)
    torch.testing.assert_close(answer("body"), sought, rtol=1e-4, atol=1e-5)
    tensors = read_tensors(tmp_path / "in" / "adapter_model.safetensors")
    around = {key.replace("base_model.model.", "base_model.model.bert."): tensor for key, tensor in tensors.items()}
    write_tensors(tmp_path / "in" / "adapter_model.safetensors", around)
    pull(f"file:{tmp_path / 'in'}", alias="around", base=tiny_encoder)
    torch.testing.assert_close(answer("around"), sought, rtol=1e-4, atol=1e-5)
    write_tensors(
        tmp_path / "in" / "adapter_model.safetensors",
        around | {"base_model.model.classifier.weight": torch.ones(2, 32)},
    )
    with pytest.raises(UnsupportedError, match="holds a classification head"):
        pull(f"file:{tmp_path / 'in'}", alias="head", base=tiny_encoder)


def test_a_head_goes_along_with_its_labels(tiny_encoder: str, tmp_path: Path) -> None:
    from tests.models.test_combine import LABELS, adapter

    model = adapter(tiny_encoder, "sorter", 1, LABELS)
    export_adapter(open_store(), "sorter", "peft", tmp_path / "out")
    made = pull(f"file:{tmp_path / 'out'}", alias="again", base=tiny_encoder)
    loaded = load_model(open_store(), "again", dtype="fp32", device="cpu")
    assert loaded.labels == LABELS and tuple(made.meta["labels"]) == LABELS
    torch.testing.assert_close(loaded.module.head.weight, model.module.head.weight)


@pytest.mark.parametrize(
    "options", [{}, {"lora_alpha": 5, "rank_pattern": {"layers.0.self_attn.q_proj": 2}}, {"use_rslora": True}]
)
def test_gguf_and_back(options: dict[str, Any], tiny_decoder: str, tiny_decoder_path: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(
        **{
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "k_proj", "up_proj"],
            "init_lora_weights": False,
            **options,
        }
    )
    sought = foreign(tiny_decoder_path, config, tmp_path / "in")
    pull(f"file:{tmp_path / 'in'}", alias="came", base=tiny_decoder)
    export("came", out=tmp_path / "a.gguf")
    made = pull(f"file:{tmp_path / 'a.gguf'}", alias="back", base=tiny_decoder)
    assert made.meta["method"] == "lora"
    torch.testing.assert_close(answer("back"), sought, rtol=1e-4, atol=1e-5)
    before = read_tensors(tmp_path / "in" / "adapter_model.safetensors")
    export_adapter(open_store(), "back", "peft", tmp_path / "out")
    after = read_tensors(tmp_path / "out" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    if "use_rslora" not in options:  # its other scale is folded into B
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_gguf_of_another_kind(tiny_decoder: str, tiny_encoder: str, tiny_decoder_path: Path, tmp_path: Path) -> None:
    foreign(tiny_decoder_path, KINDS["lora"], tmp_path / "in")
    pull(f"file:{tmp_path / 'in'}", alias="came", base=tiny_decoder)
    export("came", out=tmp_path / "a.gguf")
    with pytest.raises(MismatchError, match="a GGUF adapter goes on a decoder"):
        pull(f"file:{tmp_path / 'a.gguf'}", alias="x", base=tiny_encoder)
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "a.gguf").read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cut\.gguf"):
        pull(f"file:{tmp_path / 'cut.gguf'}", alias="x", base=tiny_decoder)


def test_what_does_not_belong_on_the_base(
    tiny_decoder: str, tiny_encoder: str, tiny_decoder_path: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    wide = tmp_path / "wide"
    LlamaForCausalLM(
        LlamaConfig(vocab_size=300, hidden_size=48, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4)
    ).save_pretrained(str(wide))
    AutoTokenizer.from_pretrained(str(tiny_decoder_path)).save_pretrained(str(wide))
    foreign(wide, KINDS["lora"], tmp_path / "a")
    before = {record.name for record in list_models(open_store())}
    with pytest.raises(
        MismatchError,
        match=r"does not fit tiny-decoder: model\.layers\.0\.\S+ is 4 x \d+ in the file and 4 x \d+ there\n.*no model here",
    ):
        pull(f"file:{tmp_path / 'a'}", alias="came", base=tiny_decoder)
    pull(f"file:{wide}", alias="wide")
    with pytest.raises(MismatchError, match="it fits wide: --base wide"):
        pull(f"file:{tmp_path / 'a'}", alias="came", base=tiny_decoder)
    with pytest.raises(
        MismatchError,
        match=r"does not fit tiny-encoder: it has no layers called down_proj, q_proj, v_proj\n.*it fits wide",
    ):
        pull(f"file:{tmp_path / 'a'}", alias="came", base=tiny_encoder)
    assert {record.name for record in list_models(open_store())} == before | {"wide"}
    kept = {record.digest for record in list_models(open_store())}
    assert {path.name for path in open_store().home.artifacts.iterdir() if len(path.name) == 64} == kept


def test_another_vocabulary(tiny_decoder: str, tiny_decoder_path: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    foreign(tiny_decoder_path, KINDS["lora"], tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_decoder_path))
    tokenizer.save_pretrained(str(tmp_path / "a"))
    assert pull(f"file:{tmp_path / 'a'}", alias="same", base=tiny_decoder).base == tiny_decoder
    tokenizer.chat_template += " "
    tokenizer.save_pretrained(str(tmp_path / "a"))
    with pytest.raises(MismatchError, match="another chat template than that of tiny-decoder"):
        pull(f"file:{tmp_path / 'a'}", alias="x", base=tiny_decoder)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(str(tmp_path / "a"))
    with pytest.raises(MismatchError, match=r"made for another vocabulary than tiny-decoder: .* it adds '<tool>'"):
        pull(f"file:{tmp_path / 'a'}", alias="x", base=tiny_decoder)
    tensors = read_tensors(tmp_path / "a" / "adapter_model.safetensors")
    key = "base_model.model.model.embed_tokens.weight"
    write_tensors(tmp_path / "a" / "adapter_model.safetensors", tensors | {key: torch.zeros(900, 32)})
    with pytest.raises(MismatchError, match="made for a vocabulary of 900 tokens"):
        pull(f"file:{tmp_path / 'a'}", alias="x", base=tiny_decoder)
    rows = load_model(open_store(), tiny_decoder).module.config.vocab_size
    write_tensors(tmp_path / "a" / "adapter_model.safetensors", tensors | {key: torch.zeros(rows, 32)})
    with pytest.raises(UnsupportedError, match="holds the base's own embed_tokens"):
        pull(f"file:{tmp_path / 'a'}", alias="x", base=tiny_decoder)


def test_files_that_are_pickled_cut_short_or_half_a_base(
    tiny_decoder: str, tiny_decoder_path: Path, tmp_path: Path
) -> None:
    foreign(tiny_decoder_path, KINDS["lora"], tmp_path / "a")
    weights, config = tmp_path / "a" / "adapter_model.safetensors", tmp_path / "a" / "adapter_config.json"
    whole = weights.read_bytes()

    def refused(error: type[Exception], says: str) -> None:
        with pytest.raises(error, match=says):
            pull(f"file:{tmp_path / 'a'}", alias="x", base=tiny_decoder)

    for length in (3, 200, len(whole) - 1):
        weights.write_bytes(whole[:length])
        refused(DataError, r"adapter_model\.safetensors")
    weights.unlink()
    (tmp_path / "a" / "adapter_model.bin").write_bytes(b"x")
    refused(UnsupportedError, r"adapter_model\.bin is pickled and never loaded")
    weights.write_bytes(whole)
    text = config.read_text()
    told = json.loads(text)
    config.write_text(json.dumps(told | {"init_lora_weights": "pissa"}))
    refused(UnsupportedError, "took a part out of the base's own weights")
    config.write_text(json.dumps(told | {"bias": "all"}))
    refused(UnsupportedError, "bias='all': its biases would stay in the base")
    config.write_text(json.dumps(told | {"peft_type": "NEWER"}))
    refused(UnsupportedError, "peft_type 'NEWER' is not known")
    config.write_text(text[:20])
    refused(DataError, "cannot be read as JSON")
    config.write_text(json.dumps({"r": 4}))
    refused(DataError, "neither PEFT's nor AdapterHub's")


def test_what_cannot_go_out(tiny_decoder: str, tmp_path: Path) -> None:
    from tests.models.test_combine import adapter
    from tests.models.test_inspect_adapter import changed

    adapter(tiny_decoder, "a", 1)
    changed(tiny_decoder, "norms", "layer_norm")
    with pytest.raises(
        UnsupportedError, match=r"made by layer_norm and is the changed tensors of its base.*\n.*merge norms"
    ):
        export_adapter(open_store(), "norms", "peft", tmp_path / "out")
    with pytest.raises(InputError, match="format must be gguf, peft or adapterhub; got 'onnx'"):
        export_adapter(open_store(), "a", "onnx", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(InputError, match="must be a new or an empty folder"):
        export_adapter(open_store(), "a", "peft", tmp_path / "full")
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("home")) == ["full"]


@pytest.mark.parametrize(
    "method", ["adapter", "pfeiffer_adapter", "parallel_adapter", "compacter", "mam", "ladder_side"]
)
def test_adapters_that_peft_lacks_go_out_and_come_back(method: str, tiny_decoder: str, tmp_path: Path) -> None:
    from tests.models.test_inspect_adapter import tuned

    options = {"reduction": 8} if "adapter" in method else {"reduction": 4} if method == "ladder_side" else {}
    before = tuned(tiny_decoder, "a", method, **options)
    export_adapter(open_store(), "a", "peft", tmp_path / "out")
    made = pull(f"file:{tmp_path / 'out'}", alias="back", base=tiny_decoder)
    assert made.meta["method"] == method and made.meta["serving"]["llamacpp"] == "no"
    after = read_tensors(tmp_path / "out" / "adapter_model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before) and before.keys() == after.keys()
    torch.testing.assert_close(answer("back"), answer("a"), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize(
    ("method", "options"), [("adapter", {"train_norms": False}), ("pfeiffer_adapter", {"blocks": [1]})]
)
def test_adapters_of_ours_go_to_adapterhub_and_back(
    kind: str, method: str, options: dict[str, Any], tiny_decoder: str, tiny_encoder: str, tmp_path: Path
) -> None:
    from tests.models.test_inspect_adapter import tuned

    base = tiny_encoder if kind == "bert" else tiny_decoder
    before = tuned(base, "a", method, reduction=3, **options)
    export_adapter(open_store(), "a", "adapterhub", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["config"]
    assert int(32 // told["reduction_factor"]) == 32 // 3 and told["leave_out"] == (
        [0] if options.get("blocks") else []
    )
    made = pull(f"file:{tmp_path / 'out'}", alias="back", base=base)
    assert made.meta["method"] == method
    export_adapter(open_store(), "back", "peft", tmp_path / "peft")
    after = read_tensors(tmp_path / "peft" / "adapter_model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    torch.testing.assert_close(answer("back"), answer("a"))


def test_trained_norms_and_other_sources_have_no_place_in_adapterhub(tiny_decoder: str, tmp_path: Path) -> None:
    from tests.models.test_inspect_adapter import tuned

    tuned(tiny_decoder, "norms", "adapter", reduction=8)
    tuned(tiny_decoder, "beside", "parallel_adapter", reduction=8)
    tuned(tiny_decoder, "kronecker", "compacter", reduction=8)
    for name, says in (
        ("norms", "it trains norms of the base too"),
        ("beside", "it reads the input of"),
        ("kronecker", "norms|hypercomplex"),
    ):
        with pytest.raises(UnsupportedError, match=rf"{says}.*\n.*--format peft"):
            export_adapter(open_store(), name, "adapterhub", tmp_path / "out")
