"""New models with random weights, to be trained from nothing: Llama, GPT-2 and BERT shapes, built by transformers' own classes.

Llama (Touvron et al. 2023): RMSNorm, SwiGLU, rotary positions, grouped-query attention (Ainslie et al. 2023). GPT-2: Radford et al. 2019. BERT:
Devlin et al. 2019, an encoder with its language-model head. Weights begin as N(0, 0.02), norms as 1, biases as 0; what writes into
the residual stream of a decoder as N(0, 0.02 / sqrt(2 layers)) (Radford et al. 2019, section 2.3). The same shape, tokenizer and seed give the same
model, under the same name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from luthier.core.config import validate
from luthier.core.digest import digest_json
from luthier.core.errors import ConflictError, InputError, NotFoundError, UnsupportedError
from luthier.core.model import Architecture, ModelRecord
from luthier.core.run import Progress, no_progress
from luthier.models.new_tokenizer import END

if TYPE_CHECKING:
    from luthier.core.dataset import Dataset
    from luthier.store.database import Store

SIZES: Mapping[str, tuple[int, int, int]] = {
    "1m": (4, 128, 4),
    "2m": (5, 192, 6),
    "5m": (6, 256, 8),
    "10m": (8, 320, 5),
    "25m": (10, 448, 7),
    "50m": (12, 576, 9),
    "85m": (12, 768, 12),
    "300m": (24, 1024, 16),
}
"""Layers, width and heads for about so many parameters without embeddings (12 layers x width^2: Kaplan et al. 2020, table 1)."""
_RANDOM_STD = 0.02
_FORMAT = 1  # counts in a model's name: another way to begin gives another model
_KINDS: Mapping[str, Architecture] = {"llama": "decoder", "gpt2": "decoder", "bert": "encoder"}


class TokenizerTraining(BaseModel):
    """``vocabulary``: the most tokens. ``lowercase``: of WordPiece only; left out, true."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    vocabulary: int = Field(8192, ge=64)
    lowercase: bool | None = None


class NewTokenizer(BaseModel):
    """``train``: make one of the training texts; ``of``: take that of a stored model (``tokenizer: NAME`` for short)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    train: TokenizerTraining | None = None
    of: str | None = Field(None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, values: Any) -> Any:
        return {"of": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _one(self) -> NewTokenizer:
        if (self.train is None) == (self.of is None):
            raise ValueError("must be the name of a stored model, or {train: {vocabulary: 8192}}")
        return self


class NewModel(BaseModel):
    """The shape of a new model. ``size`` is one of SIZES, or ``layers``, ``width`` and ``heads`` are given; what is given beside a size wins over it.

    ``width`` is the hidden size, ``inner`` that of the feed-forward layers (left out: 8/3 of the width in Llama, rounded up to 64s; else 4 times it).
    ``kv_heads`` and ``rope_theta`` are Llama's; left out, as many as heads, and 10,000. ``vocabulary``: rows of the embedding table; left out,
    as many as the tokenizer has tokens. ``tokenizer``: that of a stored model, or ``{train: {vocabulary: 8192}}``. ``dropout``: of all that the
    architecture drops (in Llama, attention alone). ``name``: in the store; derived when left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    architecture: Literal["llama", "gpt2", "bert"]
    size: Literal["1m", "2m", "5m", "10m", "25m", "50m", "85m", "300m"] | None = None
    layers: int | None = Field(None, ge=1, le=200)
    width: int | None = Field(None, ge=8, le=32768)
    heads: int | None = Field(None, ge=1)
    kv_heads: int | None = Field(None, ge=1)
    inner: int | None = Field(None, ge=8)
    context_length: int = Field(512, ge=16)
    vocabulary: int | None = Field(None, ge=1)
    tokenizer: NewTokenizer = NewTokenizer(train=TokenizerTraining())
    tie_embeddings: bool = True
    rope_theta: float | None = Field(None, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    seed: int = Field(0, ge=0)
    name: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> NewModel:
        if self.size is None and None in (self.layers, self.width, self.heads):
            raise ValueError(f"give size ({', '.join(SIZES)}), or layers, width and heads")
        if self.architecture != "llama":
            for field in ("kv_heads", "rope_theta"):
                if getattr(self, field) is not None:
                    raise ValueError(f"{field} is for architecture llama; {self.architecture} has none")
        shape = self.shape()
        width, heads, kv_heads = shape["width"], shape["heads"], shape.get("kv_heads", shape["heads"])
        if width % heads:
            raise ValueError(f"heads must divide width, {width}; got {heads}")
        if heads % kv_heads:
            raise ValueError(f"kv_heads must divide heads, {heads}; got {kv_heads}")
        if self.architecture == "llama" and width // heads % 2:
            raise ValueError(
                f"width / heads must be even, for rotary positions; got {width} / {heads} = {width // heads}"
            )
        train = self.tokenizer.train
        if train is not None and train.lowercase is not None and self.architecture != "bert":
            raise ValueError(f"lowercase is for architecture bert; {self.architecture} reads bytes as they are")
        return self

    def shape(self) -> dict[str, Any]:
        """Every setting that decides a tensor's shape or what the model computes, with what was left out filled in; not the vocabulary."""
        preset = SIZES[self.size] if self.size else (0, 0, 0)
        layers, width, heads = (
            given or known for given, known in zip((self.layers, self.width, self.heads), preset, strict=True)
        )
        gated = self.architecture == "llama"
        inner = self.inner or (64 * math.ceil(8 * width / 3 / 64) if gated else 4 * width)
        shape: dict[str, Any] = {
            "architecture": self.architecture,
            "layers": layers,
            "width": width,
            "heads": heads,
            "inner": inner,
        }
        if gated:
            shape |= {"kv_heads": self.kv_heads or heads, "rope_theta": self.rope_theta or 10_000.0}
        rest = {"context_length": self.context_length, "tie_embeddings": self.tie_embeddings, "dropout": self.dropout}
        return shape | rest


@dataclass(frozen=True)
class _Source:
    """Where a new model's tokenizer is from: ``key`` decides it; one of ``record`` (a stored model) and ``dataset``."""

    key: tuple[str, ...]
    record: ModelRecord | None = None
    dataset: Dataset | None = None


def new(
    name: str | None = None,
    *,
    data: Dataset | str | Path | None = None,
    store: Store | None = None,
    progress: Progress = no_progress,
    **shape: Any,
) -> ModelRecord:
    """Make a model of ``shape`` (the settings of ``NewModel``) with random weights, and register it as a base model.

    ``data`` are the texts that its tokenizer is trained on, unless ``tokenizer`` names a stored model. One that was made before is returned as it
    is. Raises InputError for shapes that cannot be, NotFoundError, ConflictError when the name is another model's.
    """
    from luthier.data.read import read
    from luthier.store.database import open_store

    wanted = validate(NewModel, {**shape, **({"name": name} if name else {})}, where="new")
    dataset = read(data) if isinstance(data, str | Path) else data
    return make(store or open_store(), wanted, dataset, progress)[0]


def make(
    store: Store, wanted: NewModel, dataset: Dataset | None = None, progress: Progress = no_progress
) -> tuple[ModelRecord, bool]:
    """(the base model, whether it was made now and not before); ``dataset`` is what its tokenizer learns from."""
    from luthier.store.models import check_name, find

    source = _tokenizer_source(store, wanted, dataset)
    spec = {"format": _FORMAT, **wanted.shape(), "vocabulary": wanted.vocabulary, "seed": wanted.seed}
    key = digest_json([spec, list(source.key)])
    name = check_name(wanted.name or f"{wanted.architecture}-{wanted.size or _about(wanted)}-{key[:6]}")
    try:
        found = find(store, name)
    except NotFoundError:
        return _make(store, wanted, name, source, {**spec, "key": key}, progress), True
    if (found.meta.get("new") or {}).get("key") != key:
        raise ConflictError(
            f"the name {name!r} is taken by another {found.kind} (made {found.created_at[:10]}, of another shape, seed or tokenizer)",
            hint=f"choose another: model.new.name=OTHER, or remove it: luthier models --remove {name}",
        )
    return found, False


def _about(wanted: NewModel) -> str:
    shape = wanted.shape()
    return f"{shape['layers']}x{shape['width']}"


def _tokenizer_source(store: Store, wanted: NewModel, dataset: Dataset | None) -> _Source:
    from luthier.store.models import find

    train = wanted.tokenizer.train
    if train is None:
        record = find(store, str(wanted.tokenizer.of))
        while record.kind != "base" and record.base:
            record = find(store, record.base)
        return _Source(("model", record.digest), record=record)
    if dataset is None:
        raise InputError(
            "a new model needs a tokenizer: name a stored model whose tokenizer it takes, or give the texts to train one on",
            hint="luthier models new NAME --tokenizer smollm2-135m   or   --data corpus.jsonl",
        )
    return _Source(("train", str(train.vocabulary), str(train.lowercase is not False), dataset.digest), dataset=dataset)


def _tokenizer(store: Store, wanted: NewModel, source: _Source, progress: Progress) -> Any:
    """The tokenizer itself. Raises UnsupportedError where the architecture needs tokens that a stored one lacks."""
    from luthier.models.load import load_tokenizer
    from luthier.models.new_tokenizer import texts_of, train_decoder_tokenizer, train_encoder_tokenizer
    from luthier.store.artifacts import path_of

    encoder = _KINDS[wanted.architecture] == "encoder"
    if source.record is not None:
        found = load_tokenizer(path_of(store, source.record.digest))
        needs = ("mask", "cls", "sep", "pad") if encoder else ("eos",)
        missing = [kind for kind in needs if getattr(found, f"{kind}_token_id", None) is None]
        if missing or getattr(found, "backend_tokenizer", None) is None:
            lacks = f"has no {missing[0]} token" if missing else "is not a fast one"
            raise UnsupportedError(
                f"architecture {wanted.architecture} cannot take the tokenizer of {source.record.name}: it {lacks}",
                hint="train one: model.new.tokenizer.train.vocabulary=8192",
            )
        return found
    train = wanted.tokenizer.train
    assert source.dataset is not None and train is not None
    progress("train tokenizer", 0, 1)
    texts = texts_of(source.dataset)
    made = (
        train_encoder_tokenizer(list(texts), train.vocabulary, lowercase=train.lowercase is not False)
        if encoder
        else train_decoder_tokenizer(texts, train.vocabulary)
    )
    made.model_max_length = wanted.context_length
    progress("train tokenizer", 1, 1)
    return made


def _make(
    store: Store, wanted: NewModel, name: str, source: _Source, spec: dict[str, Any], progress: Progress
) -> ModelRecord:
    from luthier.models.load import quiet_transformers
    from luthier.models.new_tokenizer import digest_of
    from luthier.models.pull import describe
    from luthier.store.artifacts import put, staged
    from luthier.store.lineage import Node, record_edge
    from luthier.store.models import register

    tokenizer = _tokenizer(store, wanted, source, progress)
    tokens = len(tokenizer)
    vocabulary = wanted.vocabulary or tokens
    if vocabulary < tokens:
        raise InputError(f"vocabulary must be at least the tokenizer's {tokens:,} tokens; got {vocabulary:,}")
    progress("new model", 0, 1)
    with staged(store) as folder, quiet_transformers():
        module = random_model(wanted, vocabulary, tokenizer)
        module.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        described = describe(folder)
        digest, size = put(store, folder)
    embeddings = embedding_parameters(module)
    described |= {"format": "safetensors", "source": f"new:{wanted.architecture}", "random": True}
    described["without_embeddings"] = sum(p.numel() for p in module.parameters()) - embeddings
    described["parameters"] = sum(p.numel() for p in module.parameters())
    described["new"] = {
        **spec,
        "vocabulary": vocabulary,
        "tokenizer": {"from": source.key[0], "digest": digest_of(tokenizer)},
    }
    described.pop("licence")
    record = ModelRecord(
        name=name,
        kind="base",
        architecture=described.pop("architecture"),
        digest=digest,
        size_bytes=size,
        meta=described,
    )
    made = register(store, record)
    if source.record is not None:
        record_edge(store, Node("model", source.record.name), "tokenizer of", Node("model", name))
    elif source.dataset is not None:
        record_edge(
            store, Node("dataset", source.dataset.digest, source.dataset.name), "tokenizer of", Node("model", name)
        )
    progress("new model", 1, 1)
    return made


def random_model(wanted: NewModel, vocabulary: int, tokenizer: Any) -> Any:
    """The transformers model in fp32 on the CPU, its weights drawn with ``wanted.seed``; torch's own generator is left as it was."""
    import torch
    import transformers

    config = _config(wanted, vocabulary, tokenizer)
    classes = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "bert": "BertForMaskedLM"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(wanted.seed)
        module = getattr(transformers, classes[wanted.architecture])(config).float()
    if wanted.architecture == "llama":  # transformers does this for GPT-2 alone
        with torch.no_grad():
            for layer in module.model.layers:
                for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                    linear.weight /= math.sqrt(2 * config.num_hidden_layers)
    if module.can_generate():
        ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END)} - {None, tokenizer.unk_token_id}
        module.generation_config.eos_token_id = sorted(ends)
        module.generation_config.pad_token_id = tokenizer.pad_token_id
        module.generation_config.bos_token_id = tokenizer.bos_token_id
    return module.eval()


def _config(wanted: NewModel, vocabulary: int, tokenizer: Any) -> Any:
    import transformers

    shape = wanted.shape()
    common = {
        "vocab_size": vocabulary,
        "initializer_range": _RANDOM_STD,
        "tie_word_embeddings": wanted.tie_embeddings,
        "pad_token_id": tokenizer.pad_token_id,
    }
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if wanted.architecture == "gpt2":
        return transformers.GPT2Config(
            n_positions=wanted.context_length,
            n_embd=shape["width"],
            n_layer=shape["layers"],
            n_head=shape["heads"],
            n_inner=shape["inner"],
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), wanted.dropout),
            **ends,
            **common,
        )
    common |= {
        "hidden_size": shape["width"],
        "intermediate_size": shape["inner"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "max_position_embeddings": wanted.context_length,
    }
    if wanted.architecture == "llama":
        return transformers.LlamaConfig(
            num_key_value_heads=shape["kv_heads"],
            rope_parameters={"rope_type": "default", "rope_theta": shape["rope_theta"]},
            rms_norm_eps=1e-5,
            attention_dropout=wanted.dropout,
            **ends,
            **common,
        )
    dropped = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), wanted.dropout)
    return transformers.BertConfig(**dropped, **common)


def embedding_parameters(module: Any) -> int:
    """Parameters of a Hugging Face model's tables of tokens and positions, and of an output layer of its own."""
    from torch import nn

    tables = {id(t.weight): t.weight.numel() for t in module.modules() if isinstance(t, nn.Embedding)}
    output = module.get_output_embeddings()
    if output is not None:
        tables[id(output.weight)] = output.weight.numel()
    return sum(tables.values())
