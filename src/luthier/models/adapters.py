"""PEFT adapters inside a loaded model: saving one, putting several beside one another, taking them out.

Adapters of one kind share one ``peft.PeftModel``. PEFT refuses a LoHa beside a LoRA, so each further kind gets a PEFT model of its own
around a copy of the module tree whose tensors are the base's own: it costs the objects, not the weights.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError, LuthierError, MismatchError, UnsupportedError
from luthier.models import parts
from luthier.models.load import LoadedModel
from luthier.models.soft_prompt import KINDS, is_soft, set_sizes, task_of
from luthier.models.weights import AGAIN, read_tensors, write_tensors

if TYPE_CHECKING:
    from luthier.store.database import Store

# PEFT imports bitsandbytes where it is installed, which then misses a package that nothing here needs
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@contextmanager
def quiet_peft() -> Iterator[None]:
    """No warnings from PEFT and what it imports: of layers whose layout it corrects itself, of random matrices that are drawn again, of its own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


def inner_of(model: LoadedModel) -> Any:
    """What methods change: the language model of a decoder or encoder-decoder, the body of an encoder."""
    return model.module.body if model.architecture == "encoder" else model.module


def put_inner(model: LoadedModel, module: Any) -> None:
    """Inverse of ``inner_of``."""
    if model.architecture == "encoder":
        model.module.body = module
    else:
        model.module = module


def peft_or_none(model: LoadedModel) -> Any:
    """The PeftModel that a loaded model answers with, or None."""
    inner = inner_of(model)
    return inner if hasattr(inner, "peft_config") and hasattr(inner, "base_model") else None


def peft_type(config: Any) -> str:
    """PEFT's word for what kind of adapter a configuration describes: LORA, IA3, ..."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def kind_of(config: Any) -> str:
    """What adapters must have in common to share a PEFT model: the type, shared random matrices, modules trained whole."""
    whole = sorted(getattr(config, "modules_to_save", None) or ())
    if whole and getattr(config, "ensure_weight_tying", False):
        whole = ["tied"]  # PEFT takes the tied head out of the list and puts it in
    common = [peft_type(config), str(getattr(config, "projection_prng_key", "")), *whole]
    return " ".join(each for each in common if each)


def remember_start(layer: Any, name: str) -> None:
    """Keep what A and B of a LoRA layer are now: what the layer's base weight has lost (``save_adapter`` gives it back)."""
    pair = layer.lora_A[name].weight.detach().clone(), layer.lora_B[name].weight.detach().clone()
    layer.start = {**getattr(layer, "start", {}), name: pair}


def save_adapter(model: Any, folder: Path, base_name: str) -> None:
    """Write the active adapter of a PeftModel in PEFT's layout."""
    from peft import get_peft_model_state_dict
    from peft.utils.other import ModulesToSaveWrapper

    name = model.active_adapter
    config = copy.deepcopy(model.peft_config[name])
    config.base_model_name_or_path, config.inference_mode = base_name, True
    targets = getattr(config, "target_modules", None) or ()
    embeds = not isinstance(targets, str) and bool({"embed_tokens", "lm_head", "word_embeddings"} & set(targets))
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=embeds)
    _from_the_start(model, name, config, tensors)
    if getattr(config, "ensure_weight_tying", False):
        # PEFT has taken the tied head out of the list, and not every one back in
        whole = [where for where, layer in model.named_modules() if isinstance(layer, ModulesToSaveWrapper)]
        config.modules_to_save = [where.removeprefix("base_model.model.") for where in whole]
    seen: set[int] = set()
    # a head that is the embeddings is written twice, as PEFT does: safetensors shares nothing
    for key, tensor in tensors.items():
        if tensor.data_ptr() in seen:
            tensors[key] = tensor.clone()
        seen.add(tensor.data_ptr())
    config.save_pretrained(str(folder))
    write_tensors(folder / ADAPTER, tensors)


def _from_the_start(model: Any, name: str, config: Any, tensors: dict[str, Any]) -> None:
    """Where the base weights lost B0 A0 when training began, write [A; A0] and [B, -B0]: ranks double, the scale stays."""
    import torch

    started = {
        where: layer.start[name] for where, layer in model.named_modules() if name in getattr(layer, "start", {})
    }
    for where, (a, b) in started.items():
        key_a, key_b = f"{where}.lora_A.weight", f"{where}.lora_B.weight"
        tensors[key_a] = torch.cat([tensors[key_a], a.to(tensors[key_a])])
        tensors[key_b] = torch.cat([tensors[key_b], -b.to(tensors[key_b])], dim=1)
    if started:
        factor = math.sqrt(2.0) if config.use_rslora else 2.0
        config.r, config.lora_alpha = 2 * config.r, factor * config.lora_alpha
        config.rank_pattern = {key: 2 * rank for key, rank in config.rank_pattern.items()}
        config.alpha_pattern = {key: factor * alpha for key, alpha in config.alpha_pattern.items()}


def load_adapter(base: LoadedModel, folder: Path, store: Store | None = None) -> tuple[Any, str]:
    """Add the folder's PEFT adapter to the base in its dtype; returns the PEFT model that holds it and PEFT's name for it.

    What it is built on comes from ``store`` (``models.parts``).

    Raises DataError for a damaged file, MismatchError for tensors that do not fit; the base is then as it was.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    from luthier.models import tuners
    from luthier.models.fast import speed_up

    tuners.register()

    tensors = {
        key: tensor.to(device=base.device, dtype=base.dtype if tensor.is_floating_point() else tensor.dtype)
        for key, tensor in read_tensors(folder / ADAPTER).items()
    }
    config = read_config(folder)
    config.inference_mode, config.base_model_name_or_path = True, None
    if config.is_prompt_learning:
        _check_soft_prompt(base, folder, config)
    models = peft_models(base)
    model = models.get(kind_of(config))
    name = f"adapter_{_free_number(model)}"
    try:
        with quiet_peft():
            if model is None:
                plain = _plain_twin(inner_of(base)) if models else inner_of(base)
                model = get_peft_model(plain, config, name, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
                put_inner(base, model)
            else:
                model.add_adapter(name, config, low_cpu_mem_usage=True)
            report = set_peft_model_state_dict(model, tensors, adapter_name=name, low_cpu_mem_usage=True)
            tie_trained(model, name, config)
        if is_soft(model):  # its tensor is not called as its parameter is
            wrong = sorted(set(tensors) - {"prompt_embeddings"})
            model.prompt_encoder[name].to(base.dtype).requires_grad_(False)
        else:
            wrong = _unloaded(model, name, report.missing_keys) + list(report.unexpected_keys)
        if wrong:
            raise ValueError(f"first at {wrong[0]!r}")
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        drop_adapter(base, model, name)
        raise MismatchError(
            f"{folder / ADAPTER}: does not fit {base.base.name} and its own {ADAPTER_CONFIG}: {error}", hint=AGAIN
        ) from error
    try:
        parts.fill(base, model, name, store)
    except LuthierError:
        drop_adapter(base, model, name)
        raise
    speed_up(model.eval())
    return model, name


def switch(base: LoadedModel, model: Any, name: str) -> None:
    """Answer with the adapter ``name`` of the PEFT model ``model`` from now on; with the bare base when it is None or the name is ""."""
    if model is not None:
        put_inner(base, model)
    model = peft_or_none(base)
    if model is None:
        return
    if name:
        if not is_soft(model):
            model.base_model.enable_adapter_layers()
        model.set_adapter(name, inference_mode=True)
    elif is_soft(model):
        put_inner(base, model.base_model)  # which it has not changed
    else:
        model.base_model.disable_adapter_layers()


def _check_soft_prompt(base: LoadedModel, folder: Path, config: Any) -> None:
    """Make ``config`` that of a soft prompt as it is put into this base. Raises UnsupportedError, MismatchError."""
    kind = peft_type(config)
    if kind not in KINDS or config.modules_to_save:
        raise UnsupportedError(
            f"{folder / ADAPTER_CONFIG}: a soft prompt of type {kind}{' with modules_to_save' * bool(config.modules_to_save)} "
            f"cannot be put on a base; types {', '.join(sorted(KINDS))} can, without modules_to_save",
            hint="PEFT itself reads it: peft.PeftModel.from_pretrained",
        )
    config.task_type = task_of(base.architecture)
    own = copy.copy(config)
    set_sizes(own, inner_of(base))
    for key in ("num_layers", "token_dim", "num_attention_heads"):
        if getattr(config, key) not in (None, getattr(own, key)):
            raise MismatchError(
                f"{folder / ADAPTER_CONFIG}: {key} must be {getattr(own, key)} for {base.base.name}; got {getattr(config, key)}",
                hint=AGAIN,
            )


def read_config(folder: Path) -> Any:
    """PEFT's description of the adapter in ``folder``. Raises DataError for a damaged file."""
    from peft import PeftConfig

    from luthier.models import tuners

    tuners.register()
    try:
        with quiet_peft():
            return PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / ADAPTER_CONFIG}: cannot be read: {error}", hint=AGAIN) from error


def tie_trained(model: Any, name: str, config: Any) -> None:
    """Make every trained copy of the embeddings' matrix one matrix, where the base has one: PEFT's layout holds it for each module.

    That is the head, and in encoder-decoders the embeddings of both stacks. PEFT gives all of them linear layers, also those that look
    tokens up, and ties a head to the embeddings that the base has apart from them.
    """
    from peft.utils.other import ModulesToSaveWrapper

    embeddings = model.get_input_embeddings()
    if not getattr(config, "ensure_weight_tying", False) or not isinstance(embeddings, ModulesToSaveWrapper):
        return
    own, trained = embeddings.original_module.weight, embeddings.modules_to_save[name].weight
    for layer in model.modules():
        if layer is embeddings or not isinstance(layer, ModulesToSaveWrapper) or name not in layer.modules_to_save:
            continue
        held = layer.modules_to_save[name]
        if layer.original_module.weight is own:
            if type(held) is not type(layer.original_module):
                held = copy.copy(layer.original_module)
                held._parameters = dict(held._parameters)
                layer.modules_to_save[name] = held
            held.weight = trained
        elif held.weight is trained:
            layer.modules_to_save[name] = copy.deepcopy(layer.original_module).requires_grad_(trained.requires_grad)


def peft_models(base: LoadedModel) -> dict[str, Any]:
    """Kind -> PEFT model of what is attached to a base."""
    held = [each for each in base.attached.values() if each.peft_model is not None]
    return {kind_of(each.peft_model.peft_config[each.peft_name]): each.peft_model for each in held}


def drop_adapter(base: LoadedModel, model: Any, name: str) -> None:
    """Take an adapter that is no longer among ``base.attached`` out of the PEFT model that holds it; with its last one goes that model."""
    if model is None or name not in model.peft_config:
        return
    others = [other for other in model.peft_config if other != name]
    if others:
        model.set_adapter(others[0], inference_mode=True)
        model.delete_adapter(name)
    elif inner_of(base) is model:
        rest = [other for other in peft_models(base).values() if other is not model]
        put_inner(base, rest[0] if rest else unwrapped(model))


def _unloaded(model: Any, name: str, missing: list[str]) -> list[str]:
    """Of the tensors that PEFT misses, those that have no values: one that layers share comes under another name."""
    missing = [key for key in missing if f".{name}." in key or key.endswith(f".{name}")]
    if not missing:
        return []
    tensors = model.state_dict(keep_vars=True)
    known = {id(tensor) for key, tensor in tensors.items() if key not in missing}
    return [key for key in missing if id(tensors[key]) not in known and not key.endswith(f".ranknum.{name}")]


def _plain_twin(inner: Any) -> Any:
    """A copy of the modules with the same tensors, then without a PeftModel's adapters."""
    inner = inner.base_model if is_soft(inner) else inner
    tensors = [*inner.parameters(), *inner.buffers()]
    return unwrapped(copy.deepcopy(inner, {id(tensor): tensor for tensor in tensors}))


def unwrapped(model: Any) -> Any:
    """The plain module inside a PeftModel, its own weights as they were. The PeftModel is used up. A plain module is itself."""
    from peft.utils.other import ModulesToSaveWrapper

    if is_soft(model):
        return model.base_model
    if not hasattr(model, "unload"):
        return model
    for name, layer in list(model.named_modules()):
        if isinstance(layer, ModulesToSaveWrapper):  # unload would leave the trained copy in its place
            model.set_submodule(name, layer.original_module)
    plain = model.unload()
    if hasattr(plain, "peft_config"):
        del plain.peft_config
    return plain


def _free_number(model: Any) -> int:
    number = 0
    while model is not None and f"adapter_{number}" in model.peft_config:
        number += 1
    return number
