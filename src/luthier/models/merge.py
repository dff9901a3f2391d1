"""Fold an adapter into the weights it adapts, and take it out again.

Taken out, the base is what it was bit for bit. Subtracting what was added would not give that in floating point, so while a model in memory
is merged its own tensors are kept aside: the weights that the adapter changes are held twice, nothing else is. A merged base in the
store has its parts beside it: the base and the adapter that it was made of, which merging never touches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luthier.core.errors import InputError, NotFoundError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.models.adapters import inner_of, peft_type, unwrapped
from luthier.models.load import LoadedModel

if TYPE_CHECKING:
    from luthier.store.database import Store


def merge(model: LoadedModel) -> LoadedModel:
    """The same model as plain Hugging Face modules, the selected adapter added into the base weights.

    The sum is computed in fp32 and rounded once to the model's dtype; of a base in 4 bits, with its dequantized weights. A delta's
    tensors replace the base's, as they are. ``model`` is used up: its modules become the result's. A model without an adapter comes
    back as it is. Raises UnsupportedError when the adapter's method cannot be merged (soft prompts).
    """
    inner = inner_of(model)
    held = model.attached.get(model.selected) if model.selected else None
    replaced = held is not None and held.changes is not None
    if held is not None and held.light:
        for _, parameter, tensor in model.light.merged(model.selected):
            parameter.data = tensor  # one at a time: the weights are never held twice
        replaced = True
    if model.light is not None:
        model.light.let_go()
    if not hasattr(inner, "peft_config"):
        return replace(model, attached={}, selected=None, light=None) if replaced else model
    if replaced:  # the adapters beside it are not part of the answer
        return _plain(model, unwrapped(inner))
    if inner.active_peft_config.is_prompt_learning:
        raise UnsupportedError(
            f"{model.record.name} is a soft prompt: it adds virtual tokens and changes no weight, so there is nothing to merge",
            hint="it can be served where it is swapped in: engine torch",
        )
    if model.quantization is not None:
        from luthier.models.quantize import dequantize

        dequantize(inner)
    buffers = {name.removeprefix("base_model.model."): b.dtype for name, b in inner.named_buffers()}
    try:
        merged = inner.float().merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError) as error:
        raise _refusal(model, inner, error) from error
    if model.quantization is not None:
        from luthier.models.quantize import restore_transposed

        restore_transposed(merged)
    return replace(_plain(model, _rounded(merged, model.dtype, buffers).eval()), quantization=None)


@contextmanager
def merged(model: LoadedModel) -> Iterator[LoadedModel]:
    """``model`` with its selected adapter inside the base's weights while the block runs: an answer then costs what one of the base costs.

    The sum is computed in fp32 and rounded once, as ``merge`` does. Afterwards every tensor of the base is its own again, bit for bit, and
    the adapter answers beside it. Nothing else may be selected within the block. Raises UnsupportedError for adapters that cannot be
    merged, and for bases in 4 bits; the model is then as it was.
    """
    held = model.attached.get(model.selected) if model.selected else None
    inner = inner_of(model)
    if held is not None and held.light:
        from luthier.models.delta import Change, Changes

        name = model.selected
        changes = Changes([Change(n, p, tensor) for n, p, tensor in model.light.merged(name)])
        changes.put_in()
        model.light.selected = None
        try:
            yield model
        finally:
            changes.take_out()
            model.light.selected = name
    elif (held is not None and held.changes is not None) or not hasattr(inner, "peft_config"):
        yield model  # its tensors are in the base already, or there is nothing to add
    else:
        if inner.active_peft_config.is_prompt_learning or model.quantization is not None:
            what = "a base in 4 bits" if model.quantization is not None else "a soft prompt"
            raise UnsupportedError(
                f"{model.record.name}: {what} cannot be merged and taken out again",
                hint="make a base of its own instead: luthier adapters merge NAME",
            )
        yield from _peft_merged(model, inner)


def _peft_merged(model: LoadedModel, inner: Any) -> Iterator[LoadedModel]:
    """PEFT's own merging, a layer at a time in fp32; the tensors that were there come back in the end."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in inner.modules() if isinstance(layer, BaseTunerLayer)]
    own = [(parameter, parameter.data) for parameter in inner.parameters()]
    kept = {id(parameter): tensor for parameter, tensor in own}
    names = list(inner.active_adapters)
    try:
        try:
            for layer in layers:
                _merge_layer(layer, names, kept)
        except (NotImplementedError, ValueError) as error:
            raise _refusal(model, inner, error) from error
        yield model
    finally:
        for parameter, tensor in own:
            parameter.data = tensor
        for layer in layers:
            if layer.merged_adapters:
                layer.merged_adapters.clear()


def _refusal(model: LoadedModel, inner: Any, error: Exception) -> UnsupportedError:
    """What to say when PEFT merges no adapter of this type (NotImplementedError), or none with such values (ValueError)."""
    return UnsupportedError(
        f"{model.record.name}: an adapter of type {peft_type(inner.active_peft_config)} cannot be merged into the weights: {error}",
        hint="it can be served where it is swapped in: engine torch",
    )


def _merge_layer(layer: Any, names: list[str], kept: Mapping[int, Any]) -> None:
    buffers = [(m, key, buffer) for m in layer.modules() for key, buffer in m._buffers.items()]
    base = {id(parameter) for parameter in layer.get_base_layer().parameters()}
    try:
        layer.float().merge(safe_merge=True, adapter_names=names)
    finally:
        for parameter in layer.parameters():
            if id(parameter) in kept:
                tensor = kept[id(parameter)]
                parameter.data = parameter.data.to(tensor.dtype) if id(parameter) in base else tensor
        for module, key, buffer in buffers:
            module._buffers[key] = buffer


@dataclass(frozen=True)
class Unmerged:
    """What a merged base was made of. ``difference``: the largest between its weights and those of ``base`` with ``adapter`` folded in
    again; 0 means that they are the same bits, so that nothing is lost with the merged files."""

    merged: ModelRecord
    base: ModelRecord
    adapter: ModelRecord
    difference: float


def unmerge(store: Store, name: str) -> Unmerged:
    """The base and the adapter that the merged base ``name`` was made of (``combine.merge_into_base``), checked against its weights.

    Nothing is changed: the two are in the store as they were. Raises InputError for a model that is not a merged one, NotFoundError when
    one of the two is no longer there.
    """
    import torch

    from luthier.models.combine import _file_dtype
    from luthier.models.load import load_model
    from luthier.store.models import find

    record = find(store, name)
    source = _merged_from(store, record)
    try:
        adapter = find(store, source)
        base = find(store, adapter.base or "")
    except NotFoundError as error:
        raise NotFoundError(
            f"{name} was made of {source}, and of that there is no longer everything in the store: {error}",
            hint="a sum of weights alone cannot be taken apart: restore what is missing from a copy",
        ) from error
    root = base
    while root.kind != "base" and root.base:
        root = find(store, root.base)
    dtype = _file_dtype(store, root)
    again = inner_of(merge(load_model(store, adapter, dtype=dtype, device="cpu"))).state_dict()
    there = inner_of(load_model(store, record, dtype=dtype, device="cpu")).state_dict()
    apart = [float("inf")] if again.keys() != there.keys() else [0.0]
    for key in again.keys() & there.keys():
        if not torch.equal(again[key], there[key]):
            apart.append(float((again[key].float() - there[key].float()).abs().max()))
    return Unmerged(record, base, adapter, max(apart))


def _merged_from(store: Store, record: ModelRecord) -> str:
    """The adapter that is folded into a base, by the name that it has now."""
    from sqlalchemy import and_, select

    from luthier.store.database import edges

    into = and_(edges.c.relation == "merged into", edges.c.target_kind == "model", edges.c.target_id == record.name)
    with store.read() as connection:
        found = connection.execute(select(edges.c.source_id).where(into)).scalars().first()
    if record.kind != "base" or found is None:
        raise InputError(
            f"{record.name} is not a merged base: no adapter was folded into it", hint="luthier lineage " + record.name
        )
    return str(found)


def _rounded(module: Any, dtype: Any, buffers: Mapping[str, Any]) -> Any:
    """Parameters in ``dtype``, buffers in the dtypes that they had: the frequencies of rotary positions stay in fp32."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for name, buffer in module.named_buffers():
        if name in buffers:
            buffer.data = buffer.data.to(buffers[name])
    return module


def require_mergeable(record: ModelRecord) -> None:
    """Raise UnsupportedError, before any weight is read, for a tuned model whose method has no merged weights (as its SERVING says)."""
    if record.meta.get("answers"):
        raise UnsupportedError(
            f"{record.name} answers with a head beside the language model; merged weights would lose it",
            hint=f"serve it where it is: luthier serve {record.name} --engine torch",
        )
    if record.meta.get("scores"):
        raise UnsupportedError(
            f"{record.name} scores texts with a head beside the language model; merged weights would lose it",
            hint="use it where it is: luthier.models.reward scores texts with it",
        )
    if not folds(record):
        raise UnsupportedError(
            f"{record.name} was made by {record.meta['method']}, whose result stands beside the weights: it cannot be folded into them, and "
            "so not be served by llama.cpp",
            hint=f"serve it where it is swapped in: luthier serve {record.name} --engine torch",
        )


def folds(record: ModelRecord) -> bool:
    """Whether the method of a tuned model leaves weights that can be folded into the base's, as its SERVING says: for llama.cpp they must be.

    A method for encoders alone folds unless it says ``FOLDS = False``. What an adapter of PEFT's own does is seen only when it is merged.
    """
    from luthier.core import catalog

    method = str(record.meta.get("method") or "")
    if record.kind != "adapter" or method not in catalog.names("methods"):
        return True
    entry = catalog.load("methods", method)
    serving = entry.module.SERVING.get("decoder") or {}
    return serving.get("llamacpp") != "no" and entry.optional("FOLDS") is not False


def _plain(model: LoadedModel, module: Any) -> LoadedModel:
    """``model`` with ``module`` as its only weights."""
    if hasattr(module, "peft_config"):
        del module.peft_config
    if model.architecture == "encoder":
        model.module.body = module
        module = model.module
    return replace(model, module=module, attached={}, selected=None, light=None)
