"""Load models from the store into memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.core.model import Architecture, ModelRecord
from luthier.models.weights import check_folder

if TYPE_CHECKING:
    import torch

    from luthier.data.render import Renderer
    from luthier.models.quantize import Quantization
    from luthier.store.database import Store

DtypeName = Literal["auto", "bf16", "fp16", "fp32"]
DeviceName = str  # auto, cpu, cuda, cuda:1, mps

AUTO_CLASSES: Mapping[Architecture, str] = {
    "decoder": "AutoModelForCausalLM",
    "encoder": "AutoModel",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
}
"""The class of transformers that loads each kind of model."""

HEAD_MODULE = "task_head"
"""What a decoder's head is called among the parts of its module."""


@dataclass
class Attached:
    """What shares a loaded base: its record, PEFT's name for it ("" when it is no adapter of PEFT's) and the PEFT model that holds it, its
    head, the tensors of the base that it replaces (``models.delta.Changes``), or that it is among the base's ``light`` adapters."""

    record: ModelRecord
    peft_name: str = ""
    peft_model: Any = None
    head: Any = None
    labels: tuple[str, ...] = ()
    changes: Any = None
    light: bool = False


@dataclass
class LoadedModel:
    """A model in memory.

    ``record`` is what was asked for, ``base`` the base weights under it (the same record when there is no adapter). ``module`` is
    a causal language model or an encoder-decoder (possibly inside a ``peft.PeftModel``) or, for encoders, an ``EncoderClassifier``. ``renderer`` is None
    for encoders. ``context_length`` is what real tokens have after the ``virtual_tokens`` of a soft
    prompt. ``folder`` holds the files of ``record``. ``attached`` and ``selected`` belong to ``models.attach``, ``light`` to
    ``models.light``. ``quantization`` says how the base is held when that is in 4 bits. ``store`` is where it was found.
    ``decoder_head`` is set by ``put_head``.
    """

    record: ModelRecord
    base: ModelRecord
    module: Any
    tokenizer: Any
    renderer: Renderer | None
    device: torch.device
    dtype: torch.dtype
    architecture: Architecture
    labels: tuple[str, ...] = ()
    context_length: int = 0
    folder: Path = field(default_factory=Path)
    base_folder: Path = field(default_factory=Path)
    attached: dict[str, Attached] = field(default_factory=dict)
    selected: str | None = None
    virtual_tokens: int = 0
    light: Any = None
    store: Store | None = None
    quantization: Quantization | None = None
    decoder_head: Any = None

    @property
    def head(self) -> Any:
        """What turns a text's vector into scores: an encoder's head, or one that was put on a decoder; None without one."""
        return self.module.head if self.architecture == "encoder" else self.decoder_head

    def put_head(self, head: Any) -> None:
        """Give the model a head (a linear layer from its width), or take it away (None).

        The head is a part of ``module``, so that it is trained with it, but of no language model: it is saved in a file of its own.
        """
        if self.architecture == "encoder":
            self.module.head = head
            return
        self.decoder_head = head
        self.module._modules.pop(HEAD_MODULE, None)
        if head is not None:
            self.module.add_module(HEAD_MODULE, head)

    @property
    def template_digest(self) -> str:
        """The renderer's digest; "" for encoders."""
        return self.renderer.digest if self.renderer is not None else ""


def load_model(
    store: Store,
    name: str | ModelRecord,
    *,
    dtype: str = "auto",
    device: str = "auto",
    labels: Sequence[str] = (),
    quantization: Quantization | None = None,
) -> LoadedModel:
    """Load a stored base model, or a base with what tuning made of it.

    ``dtype`` is auto, bf16, fp16 or fp32 (see ``choose_dtype``); ``device`` auto, cpu, cuda, cuda:N or mps. ``labels`` gives an
    encoder without a head a new one; of labels that its head has already, the rows stay. ``quantization`` holds a base's linear layers
    in 4 bits (what tuning made knows its own). The module is in eval mode.

    Raises NotFoundError for an unknown name, DataError for damaged files, MismatchError when base or template are not the ones an
    adapter was trained with, UnsupportedError for records that hold no torch weights.
    """
    from luthier.store.models import find

    record = find(store, name) if isinstance(name, str) else name
    if record.kind == "adapter":
        from luthier.models.attach import load_trained

        loaded = load_trained(store, record, dtype=dtype, device=device)
        if labels and loaded.architecture == "encoder" and tuple(labels) != loaded.labels:
            _new_labels(loaded, tuple(labels))
        loaded.store = store
        return loaded
    if record.kind != "base":
        raise UnsupportedError(
            f"{record.name} is an {record.kind}; only base models and adapters load as torch weights",
            hint="luthier models shows what each name is",
        )
    from luthier.store.artifacts import path_of

    loaded = load_folder(
        path_of(store, record.digest),
        record,
        record,
        dtype=dtype,
        device=device,
        labels=tuple(labels),
        quantization=quantization,
    )
    loaded.store = store
    return loaded


def store_of(model: LoadedModel) -> Store:
    """The store that a model was found in; the default one for a model that came from elsewhere."""
    from luthier.store.database import open_store

    return model.store or open_store()


def load_folder(
    folder: Path,
    record: ModelRecord,
    base: ModelRecord,
    *,
    dtype: str = "auto",
    device: str = "auto",
    labels: tuple[str, ...] = (),
    quantization: Quantization | None = None,
) -> LoadedModel:
    """Load a folder in Hugging Face layout (config.json, tokenizer files, safetensors weights) as ``record``."""
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    set_threads()
    check_folder(folder)
    tokenizer = load_tokenizer(folder)
    module = _pretrained(AUTO_CLASSES[record.architecture], folder, kind, where, quantization)
    if record.architecture == "encoder":
        from luthier.models.encoder import EncoderClassifier, read_pooling

        if getattr(module, "pooler", None) is not None:
            module.pooler = (
                None  # sentence vectors come from the hidden states; an unread layer must not count as trained
            )
        chance = float(getattr(module.config, "hidden_dropout_prob", 0.1) or 0.0)
        config = module.config
        module = EncoderClassifier(module, len(labels), pooling=read_pooling(folder), dropout=chance).to(where)
    else:
        config = module.config
    return LoadedModel(
        record=record,
        base=base,
        module=module.eval(),
        tokenizer=tokenizer,
        renderer=load_renderer(folder, tokenizer) if record.architecture != "encoder" else None,
        device=where,
        dtype=kind,
        architecture=record.architecture,
        labels=labels if record.architecture == "encoder" else (),
        context_length=read_context_length(record.architecture, folder, config, tokenizer),
        folder=folder,
        base_folder=folder,
        quantization=quantization,
    )


def read_context_length(architecture: Architecture, folder: Path, config: Any, tokenizer: Any) -> int:
    """Tokens that a model reads at once, as its folder, its transformers ``config`` and its tokenizer state them."""
    if architecture == "decoder":
        return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2048)
    if architecture == "encoder-decoder":
        return text_pair_length(config, tokenizer)
    from luthier.models.encoder import read_max_tokens

    return read_max_tokens(folder, config, tokenizer)


def load_renderer(folder: Path, tokenizer: Any = None) -> Renderer:
    """The prompt renderer of a decoder's or an encoder-decoder's folder, without its weights. Raises DataError for damaged files."""
    from luthier.data.render import Renderer
    from luthier.data.render_source import SourceRenderer

    stated: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                stated |= {key: value for key, value in found.items() if value is not None}
            except (OSError, ValueError, AttributeError) as error:
                raise DataError(f"{path}: cannot be read: {error}") from error
    stop = stated.get("eos_token_id")
    stop_ids = [stop] if isinstance(stop, int) else list(stop or ())
    tokenizer = tokenizer or load_tokenizer(folder)
    if not stated.get("is_encoder_decoder"):
        return Renderer(tokenizer, stop_ids=stop_ids)
    start = stated.get("decoder_start_token_id", stated.get("pad_token_id", tokenizer.pad_token_id))
    if not isinstance(start, int):
        raise DataError(f"{folder / 'config.json'}: decoder_start_token_id must be a token's number; got {start!r}")
    return SourceRenderer(tokenizer, start_id=start, stop_ids=stop_ids)


def text_pair_length(config: Any, tokenizer: Any) -> int:
    """The longest source, and the longest target, of an encoder-decoder in tokens: what its positions or its tokenizer allow.

    Relative positions (T5) set no bound; where the tokenizer states none either, the 512 tokens that T5 was trained on.
    """
    limits = [
        int(getattr(config, "max_position_embeddings", 0) or 0),
        int(getattr(tokenizer, "model_max_length", 0) or 0),
    ]
    return min((limit for limit in limits if 0 < limit < 1_000_000), default=512)


def _new_labels(loaded: LoadedModel, labels: tuple[str, ...]) -> None:
    """Give an encoder a head for ``labels``; what it knew of those it had goes on, whatever their order, and the others begin near zero."""
    from luthier.models.encoder import new_head

    old, known = loaded.module.head, loaded.labels
    head = new_head(loaded.module.width, len(labels))
    for place, label in enumerate(labels):
        if old is not None and label in known:
            head.weight.data[place].copy_(old.weight.data[known.index(label)])
            head.bias.data[place].copy_(old.bias.data[known.index(label)])
    loaded.module.head = head.to(loaded.device)
    loaded.labels = labels


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a Hugging Face folder. Raises DataError for damaged files."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        if (
            getattr(tokenizer, "backend_tokenizer", None) is not None
        ):  # files may ask for cutting and padding by themselves
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
        return tokenizer
    except Exception as error:
        raise DataError(f"{folder}: the tokenizer files cannot be read: {error}") from error


def _pretrained(
    auto_class: str, folder: Path, dtype: torch.dtype, where: torch.device, quantization: Quantization | None = None
) -> Any:
    """The bare module; every weight that the architecture needs must come from the files."""
    import torch
    import transformers
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            module, report = getattr(transformers, auto_class).from_pretrained(
                str(folder),
                # weights become 4 bits by way of bf16, never of fp16
                dtype=torch.bfloat16 if quantization is not None and dtype == torch.float16 else dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(f"{folder}: the model cannot be loaded: {error}") from error
    missing = sorted(key for key in report["missing_keys"] if "pooler." not in key)
    if missing:
        raise DataError(
            f"{folder}: the weights lack {len(missing)} tensors that config.json asks for, first {missing[0]!r}",
            hint="The files do not belong together; pull the model again.",
        )
    if where.type == "cpu" and getattr(module, "_supports_attention_backend", False):
        from luthier.models.attention import register

        module.set_attn_implementation(register())
    if quantization is not None:
        from luthier.models.quantize import quantize

        quantize(module, quantization, where)  # layer by layer: the device never holds the whole weights
        for parameter in module.parameters():  # and no buffers: rotations by position stay in fp32
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(
                    dtype, copy=True
                )  # lets go of the file that the others were read from
    return module.to(where)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and reports from transformers: callers draw their own, and what matters in a report is raised."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def choose_device(name: str = "auto") -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. auto never takes mps: it lacks operations."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device must be auto, cpu, cuda, cuda:N or mps; got {name!r}") from error
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise InputError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device 'mps' is not available on this machine")
    return device


def choose_dtype(name: str = "auto", device: torch.device | None = None) -> torch.dtype:
    """The torch dtype for ``auto``, ``bf16``, ``fp16`` or ``fp32``. auto: bf16 where the device computes in it, else fp32."""
    import torch

    device = device or torch.device("cpu")
    known = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if name == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bf16()
        return torch.bfloat16 if native and device.type != "mps" else torch.float32
    if name not in known:
        raise InputError(f"dtype must be auto, {', '.join(known)}; got {name!r}")
    if name == "fp16" and device.type == "cpu":
        raise InputError("dtype fp16 is for GPUs; on a CPU use bf16 or fp32")
    return known[name]


def name_of_dtype(dtype: torch.dtype) -> str:
    """Inverse of ``choose_dtype``."""
    import torch

    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")


def cpu_has_bf16(cpuinfo: str | None = None) -> bool:
    """Whether the CPU multiplies bf16 itself (AVX512-BF16, AMX or Arm BF16); elsewhere bf16 is emulated and slower than fp32.

    ``cpuinfo`` is the text of ``/proc/cpuinfo``, read when not given; False where there is none (macOS has no bf16 kernels in torch).
    """
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(value.split()))
    return False


def set_threads(threads: int | None = None) -> int:
    """Set torch's CPU threads and return the number.

    Without ``threads``: what OMP_NUM_THREADS says, else the physical cores that this process may use (a second hyperthread of a
    core slows matrix products down).
    """
    import torch

    if threads is None:
        if os.environ.get("OMP_NUM_THREADS"):
            return torch.get_num_threads()
        threads = usable_cores()
    if threads < 1:
        raise InputError(f"threads must be >= 1; got {threads}")
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return threads


def usable_cores() -> int:
    """Physical cores within this process's CPU affinity and its control group's quota; at least 1."""
    import psutil

    logical = psutil.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    cores = min(physical, allowed) if allowed >= logical else max(1, allowed * physical // logical)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return max(1, cores)
    return max(1, cores if quota == "max" else min(cores, int(quota) // int(period)))
