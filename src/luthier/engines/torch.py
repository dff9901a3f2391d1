"""PyTorch, in this process: every stored base and everything that tuning makes of it.

Adapters of one base share it in memory and are switched from step to step. Prompts that begin alike are read once, labels are scored
side by side in one forward, and answers of one call are decoded together.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.engine import EMBED, GENERATE, RERANK, SCORE, STREAM, ConstraintKind, Engine, EngineInfo
from luthier.core.errors import InputError, MismatchError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.engines._places import Serving
from luthier.engines._shared import SharedBase
from luthier.models.fast_linear import speed_up_linear
from luthier.models.load import LoadedModel

if TYPE_CHECKING:
    import torch

    from luthier.engines._target import EngineTarget
    from luthier.models.speculate import Guesser
    from luthier.store.database import Store


class Config(EntryConfig):
    """``dtype`` auto is bf16 where the hardware computes in it, else fp32; ``device`` auto, cpu, cuda, cuda:N or mps.

    ``max_batch_tokens`` bounds what one forward reads, padding included; left out, 1024 on a CPU (more overflows its caches) and
    16384 elsewhere. Answers are decoded together up to eight times as many tokens, new ones included. ``threads`` of the CPU (for
    the whole process); left out, the physical cores.

    ``max_running`` answers to different callers grow side by side; left out, 32 on a CPU and 64 elsewhere. Their keys and values take at most
    ``cache_mb`` (left out, a quarter of the memory that is free), and what prompts begin with is kept in ``prefix_cache_mb`` (left out, 256 on a
    CPU, 2048 elsewhere, and never more than a quarter of ``cache_mb`` beside it). Where several models share a base, the first that is opened says these.

    While few answers run, ``lookup`` guesses what comes next from what stood in the text before (summaries, corrections, extracts), and ``draft``
    names a smaller model of the store with the same tokens that does (``models.speculate``); answers stay the same, to rounding.
    """

    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    device: str = "auto"
    max_batch_tokens: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    max_running: int | None = Field(default=None, ge=1, le=1024)
    cache_mb: int | None = Field(default=None, ge=1)
    prefix_cache_mb: int | None = Field(default=None, ge=0)
    lookup: bool = False
    draft: str | None = None


def open(model: EngineTarget, config: Config) -> Engine:  # noqa: A001 - the name of the catalogue's function
    """A decoder, an encoder or an encoder-decoder from the store. Bases are shared among targets that carry the same ``shared`` mapping.

    Raises UnsupportedError for records without torch weights, and what loading raises (``models.load``, ``models.attach``).
    """
    from luthier.models.load import set_threads

    record, store = model.record, model.store
    if record is None or store is None:
        raise InputError(f"engine torch opens stored models; {model.name!r} is none", hint="luthier models")
    if record.kind not in ("base", "adapter"):
        raise UnsupportedError(
            f"engine torch opens base models and adapters; {record.name} is an {record.kind}",
            hint="use engine llamacpp for an export; an endpoint is opened by its name",
        )
    base, key = _share(model, record, config)
    base.join(key, record if key is not None else None)
    try:
        if config.threads is not None:
            set_threads(config.threads)  # after the weights are there: loading them sets the default
        with base.using(key) as loaded:
            speed_up_linear(loaded.module)
            info = _info(model.name, record, loaded, key)
            most = config.max_batch_tokens or (1024 if loaded.device.type == "cpu" else 16384)
    except BaseException:
        base.leave(key)
        raise
    if record.architecture == "encoder":
        from luthier.engines._encoder import EncoderEngine

        return EncoderEngine(base, key, info, most)
    if record.architecture == "encoder-decoder":
        from luthier.engines._seq2seq import EncoderDecoderEngine

        return EncoderDecoderEngine(base, key, info, most)
    if info.answers:
        from luthier.engines._number import NumberEngine

        return NumberEngine(base, key, info, most)
    from luthier.engines._decoder import DecoderEngine

    return DecoderEngine(base, key, info, most)


def _share(model: EngineTarget, record: ModelRecord, config: Config) -> tuple[SharedBase, str | None]:
    """The base that ``record`` lives on, and its key there (None: it is the base, or whole weights of its own)."""
    from luthier.models.attach import load_base, quantization_of, read_manifest
    from luthier.models.load import load_model
    from luthier.store.artifacts import path_of
    from luthier.store.models import find

    store = model.store
    assert store is not None
    under, key, quantization = record, None, None
    if record.kind == "adapter":
        manifest = read_manifest(path_of(store, record.digest))
        if manifest["saves"] != "weights":
            under, key = find(store, record.base or manifest["base"]["name"]), record.digest
            quantization = quantization_of(manifest)
    load = load_model if key is None else load_base
    own = key is None and record.kind == "adapter"
    place = ("torch", str(store.home.root), under.digest, own, config.dtype, config.device, quantization)
    shared = model.shared
    if place not in shared:
        shared[place] = SharedBase(
            store,
            lambda: load(store, under, dtype=config.dtype, device=config.device, quantization=quantization),
            lambda: shared.pop(place, None),
            serving=partial(_serving, config, store),
        )
    return shared[place], key


def _serving(config: Config, store: Store, loaded: LoadedModel) -> Serving:
    """How much runs at once; what the configuration leaves open follows from the device and its free memory, now that the weights are loaded."""
    on_cpu = loaded.device.type == "cpu"
    cache = (config.cache_mb or 0) * 10**6 or max(_free_bytes(loaded.device) // 4, 2**26)
    prefixes = (256 if on_cpu else 2048) * 10**6 if config.prefix_cache_mb is None else config.prefix_cache_mb * 10**6
    return Serving(
        max_running=config.max_running or (32 if on_cpu else 64),
        cache_bytes=cache,
        prefix_cache_bytes=prefixes if config.prefix_cache_mb is not None else min(prefixes, cache // 4),
        guesser=_guesser(config, store, loaded),
    )


def _guesser(config: Config, store: Store, loaded: LoadedModel) -> Guesser | None:
    """What guesses ahead. Raises UnsupportedError for a draft model that cannot, MismatchError for one with other tokens."""
    if config.draft is None and not config.lookup:
        return None
    from luthier.models.slots import supports
    from luthier.models.speculate import Draft, LookUp

    if config.draft is None:
        return LookUp()
    if config.lookup:
        raise InputError("lookup and draft are two ways to guess; got both", hint="leave one of them out")
    from luthier.models.load import load_model
    from luthier.store.models import find

    record = find(store, config.draft)
    if record.architecture != "decoder":
        raise UnsupportedError(f"draft must be a decoder; {record.name} is an {record.architecture}")
    draft = load_model(store, record, dtype=config.dtype, device=config.device)
    if draft.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise MismatchError(f"draft must have the tokens of {loaded.record.name}; {record.name} has others")
    if not supports(draft.module, draft.device):
        raise UnsupportedError(f"draft {record.name} has an attention that cannot run beside others")
    speed_up_linear(draft.module)
    return Draft(draft.module, draft.device, draft.context_length)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    from luthier.models.machine import free_memory_bytes

    return free_memory_bytes()


def _info(name: str, record: ModelRecord, loaded: LoadedModel, key: str | None) -> EngineInfo:
    from luthier.models.heads import answers_of
    from luthier.models.rerank import is_reranker

    labels = loaded.labels if record.architecture == "encoder" else ()
    answers = answers_of(loaded.head)
    can = {GENERATE, STREAM, SCORE, EMBED} if record.architecture != "encoder" or labels else {EMBED}
    if answers:
        can = {GENERATE, STREAM, EMBED}
    if record.meta.get("objective") == "rank" and is_reranker(loaded):
        can = {EMBED, RERANK}
    others = [f".{a.peft_name}." for other, a in loaded.attached.items() if other != key and a.peft_name]
    held = sum(t.nbytes for n, t in loaded.module.named_parameters() if not any(other in f"{n}." for other in others))
    held += loaded.light.nbytes(key) if loaded.light is not None else 0
    return EngineInfo(
        model=name,
        parameters=_parameters(record, loaded, labels, answers),
        engine="torch",
        capabilities=frozenset(can),
        model_digest=record.digest,
        base_digest=loaded.base.digest,
        template_digest=loaded.template_digest,
        context_length=loaded.context_length,
        labels=labels,
        answers=answers,
        meta=(
            ("dtype", str(loaded.dtype).removeprefix("torch.")),
            ("device", str(loaded.device)),
            ("weights_mb", held / 1e6),
        ),
    )


def _parameters(record: ModelRecord, loaded: LoadedModel, labels: tuple[str, ...], answers: str) -> frozenset[str]:
    """What of ``PARAMETERS`` is honoured: by heads only what chooses among labels, by encoder-decoders all but tools and beams."""
    from luthier.data.token_bytes import has_token_bytes

    if labels:
        return frozenset({"top_k", "min_p"})
    if answers or record.architecture == "encoder":
        return frozenset()
    out = {"top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"}
    if has_token_bytes(loaded.tokenizer):
        out |= {"logprobs", *get_args(ConstraintKind)}
    if record.architecture == "decoder":
        out |= {"tools", "beams"}
    return frozenset(out)
