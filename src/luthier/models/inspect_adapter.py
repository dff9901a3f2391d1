"""What tuning changed: which modules, with how many parameters, and how far each weight moved.

The size of an update is the Frobenius norm of (merged weight - base weight), whatever the method; beside it the same over the norm of the
base's weight. Where a method has no merged weight (adapters between layers, prefixes, soft prompts, fusion) the norm is that of what was
trained there: of a module's own parameters, of the keys and the values of a layer, of a virtual token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import NotFoundError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.models.load import LoadedModel
from luthier.models.weights import entries, read_tensors

if TYPE_CHECKING:
    import torch

    from luthier.store.database import Store

_BLOCK = re.compile(r"(?:^|\.)(\d+)\.(.+)$")
_FLOOR = 1e-12
_TOKEN = "virtual_token."


@dataclass(frozen=True)
class Part:
    """One module: trained ``parameters`` in the file; where there is a merged weight the norms of update and base weight, elsewhere ``norm``,
    that of the parameters themselves."""

    name: str
    parameters: int
    update: float | None = None
    weight: float | None = None
    rank: int | None = None
    norm: float | None = None

    @property
    def relative(self) -> float | None:
        """Norm of the update over the norm of the base's weight."""
        return None if self.update is None or self.weight is None else self.update / max(self.weight, _FLOOR)

    @property
    def block(self) -> int | None:
        """The number of the block that it is in, None outside of them."""
        found = _BLOCK.search(self.name)
        return int(found[1]) if found else None

    @property
    def stack(self) -> str:
        """The first part of its name: what holds the blocks, in models that have several such stacks."""
        return self.name.partition(".")[0]

    @property
    def kind(self) -> str:
        """Its name within a block, the whole name outside of them."""
        found = _BLOCK.search(self.name)
        return found[2] if found else self.name


@dataclass(frozen=True)
class Inspection:
    """A tuned model. ``parts`` are in the model's order; ``head`` counts the parameters of an encoder's own head."""

    name: str
    base: str
    architecture: str
    method: str
    saves: str
    size_bytes: int
    head: int
    parts: tuple[Part, ...]

    @property
    def parameters(self) -> int:
        """All that the files hold, the head included."""
        return self.head + sum(part.parameters for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        parts = [asdict(part) | {"relative": part.relative} for part in self.parts]
        return {**asdict(self), "parameters": self.parameters, "parts": parts}

    @property
    def measure(self) -> str:
        """What ``grid`` holds: ``update``, changes relative to the base's weights, or ``norm``, of what was trained beside them."""
        return "update" if any(part.relative is not None for part in self.parts) else "norm"

    @property
    def along(self) -> str:
        """What the first axis of ``grid`` counts: ``block``, or ``virtual token``."""
        return "virtual token" if any(part.name.startswith(_TOKEN) for part in self.parts) else "block"

    def grid(self) -> tuple[list[int], list[str], dict[tuple[int, str], float]]:
        """Blocks (or virtual tokens), kinds of modules in them, and the measure at (block, kind)."""
        told = [(part, self.of(part)) for part in self.parts if part.block is not None]
        several = (
            len({part.stack for part, value in told if value is not None}) > 1
        )  # an encoder-decoder counts its blocks twice
        values = {
            (part.block or 0, f"{part.stack}.{part.kind}" if several else part.kind): value
            for part, value in told
            if value is not None
        }
        return sorted({block for block, _ in values}), list(dict.fromkeys(kind for _, kind in values)), values

    def of(self, part: Part) -> float | None:
        """The measure of one part."""
        return part.relative if self.measure == "update" else part.norm


def tuned_record(store: Store, name: str) -> ModelRecord:
    """The tuned model called ``name``. Raises NotFoundError, UnsupportedError for what is no tuned model."""
    from luthier.store.models import find

    record = find(store, name)
    if record.kind != "adapter":
        raise UnsupportedError(
            f"{name} is {'an' if record.kind[0] in 'aeiou' else 'a'} {record.kind}, not something that tuning made",
            hint="luthier adapters lists those",
        )
    return record


def inspect_adapter(store: Store, name: str) -> Inspection:
    """Load a tuned model in fp32 on the CPU and compare it with its base. Raises as loading does."""
    import torch

    from luthier.models.adapters import inner_of
    from luthier.models.attach import HEAD, load_trained, read_manifest
    from luthier.models.quantize import dequantize
    from luthier.store.artifacts import path_of
    from luthier.store.models import find

    record = tuned_record(store, name)
    folder = path_of(store, record.digest)
    manifest = read_manifest(folder)
    saves = str(manifest["saves"])
    if saves == "weights":
        try:
            find(store, manifest["base"]["name"])
        except NotFoundError as error:
            raise NotFoundError(
                f"{name} is a whole model, and its base {manifest['base']['name']} to compare it with is not here",
                hint=error.hint,
            ) from error
    loaded = load_trained(store, record, dtype="fp32", device="cpu")
    if loaded.quantization is not None:  # what it moved is the base in 4 bits
        dequantize(inner_of(loaded))
    head = folder / HEAD
    with torch.no_grad():
        parts = tuple(_parts(store, loaded, folder, saves))
    return Inspection(
        name=name,
        base=record.base or str(manifest["base"]["name"]),
        architecture=record.architecture,
        method=str(record.meta.get("method") or (manifest.get("method") or {}).get("name") or saves),
        saves=saves,
        size_bytes=record.size_bytes,
        head=sum(size for _, size in entries(head).values()) if head.exists() else 0,
        parts=parts,
    )


def _parts(store: Store, loaded: LoadedModel, folder: Path, saves: str) -> Iterator[Part]:
    from luthier.models.adapters import ADAPTER, inner_of
    from luthier.models.attach import load_base
    from luthier.models.delta import FILE, VALUES, parameters
    from luthier.store.models import find

    held = loaded.attached.get(loaded.selected or "")
    if saves == "adapter" and held is not None:
        yield from _of_adapter(held.peft_model, held.peft_name, read_tensors(folder / ADAPTER))
    elif saves == "delta" and held is not None:
        sizes = {key.removesuffix(VALUES): size for key, (_, size) in entries(folder / FILE).items()}
        differences = {name: (sizes[name], update, own) for name, update, own in held.changes.differences()}
        yield from _by_module(differences)
    elif saves == "weights":
        base = load_base(store, find(store, loaded.base.name), dtype="fp32", device="cpu")
        before = parameters(inner_of(base))
        now = parameters(inner_of(loaded))
        known = {name: p for name, p in now.items() if name in before and before[name].shape == p.shape}
        yield from _by_module({name: (p.numel(), p - before[name], before[name]) for name, p in known.items()})


def _by_module(found: dict[str, tuple[int, torch.Tensor, torch.Tensor]]) -> Iterator[Part]:
    """A part for each module: its weight and bias together."""
    modules: dict[str, list[tuple[int, float, float]]] = {}
    for name, (size, update, own) in found.items():
        squares = float(update.square().sum()), float(own.square().sum())
        modules.setdefault(name.rpartition(".")[0], []).append((size, *squares))
    for name, rows in modules.items():
        sizes, updates, weights = zip(*rows, strict=True)
        yield Part(name, sum(sizes), sum(updates) ** 0.5, sum(weights) ** 0.5)


def _of_adapter(model: Any, adapter: str, tensors: dict[str, torch.Tensor]) -> Iterator[Part]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    from luthier.models.delta import plain_name

    left = {plain_name(key): tensor for key, tensor in tensors.items()}
    for name, layer in model.named_modules():
        plain = plain_name(name)
        mine = [key for key in left if plain and (key == plain or key.startswith(f"{plain}."))]
        if not mine or not isinstance(layer, BaseTunerLayer | ModulesToSaveWrapper):
            continue
        own = [left.pop(key) for key in mine]
        copied = isinstance(layer, ModulesToSaveWrapper)
        update, weight = _of_copy(layer, adapter) if copied else _of_layer(layer, adapter)
        ranks = getattr(layer, "r", None)
        rank = ranks.get(adapter) if isinstance(ranks, dict) else None
        norm = None if update is not None else _norm(*own)
        yield Part(plain, sum(tensor.numel() for tensor in own), update, weight, rank, norm)
    if "prompt_embeddings" in left:
        yield from _of_prompt(left.pop("prompt_embeddings"), model.peft_config[adapter])
    for key, tensor in left.items():  # what belongs to no layer: matrices that layers share
        yield Part(key, tensor.numel(), norm=_norm(tensor))


def _norm(*tensors: torch.Tensor) -> float:
    """Of all their entries together."""
    return float(sum(float(tensor.float().square().sum()) for tensor in tensors) ** 0.5)


def _of_prompt(table: torch.Tensor, config: Any) -> Iterator[Part]:
    """A part for each virtual token; of a prefix, (tokens, layers x 2 x width), one for the keys and one for the values of each layer."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "PREFIX_TUNING":
        for number, row in enumerate(table):
            yield Part(f"{_TOKEN}{number}.embedding", row.numel(), norm=_norm(row))
        return
    pairs = table.reshape(len(table), config.num_layers, 2, -1)
    for layer in range(config.num_layers):
        for place, what in enumerate(("keys", "values")):
            own = pairs[:, layer, place]
            yield Part(f"layers.{layer}.{what}", own.numel(), norm=_norm(own))


def _of_layer(layer: Any, adapter: str) -> tuple[float, float] | tuple[None, None]:
    """Norms of update and weight of a PEFT layer, which is merged for it; (None, None) where its kind has no merged weight."""
    weight = getattr(layer.get_base_layer(), "weight", None)
    if weight is None or not hasattr(layer, "merge"):
        return None, None
    before = weight.detach().clone()
    try:
        layer.merge(safe_merge=False, adapter_names=[adapter])
    except (NotImplementedError, UnsupportedError):
        return None, None  # how a kind of layer says that it cannot be merged
    now = layer.get_base_layer().weight.detach()
    return float((now - before).norm()), float(before.norm())


def _of_copy(layer: Any, adapter: str) -> tuple[float, float]:
    """Norms of a module that PEFT trains as a copy."""
    before = dict(layer.original_module.named_parameters())
    pairs = [(p, before[key]) for key, p in layer.modules_to_save[adapter].named_parameters()]
    update = sum(float((p - own).square().sum()) for p, own in pairs)
    return float(update**0.5), float(sum(float(own.square().sum()) for _, own in pairs) ** 0.5)


def short_kinds(kinds: list[str]) -> list[str]:
    """The shortest ends of the kinds' names that still tell them apart."""
    out = []
    for kind in kinds:
        pieces = kind.split(".")
        ends = [".".join(pieces[-n:]) for n in range(1, len(pieces) + 1)]
        own = [end for end in ends if sum(k == end or k.endswith(f".{end}") for k in kinds) == 1]
        out.append(own[0] if own else kind)
    return out


def draw(found: Inspection, path: Path) -> None:
    """Write the updates (or norms) as a PNG: blocks (or virtual tokens) across, kinds of modules down; what is in no block as bars.

    Raises UnsupportedError when there is nothing that could be drawn, StoreError when the disk refuses.
    """
    from io import BytesIO

    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from luthier.store.home import write_atomic

    blocks, kinds, values = found.grid()
    others = [part for part in found.parts if part.block is None and found.of(part) is not None]
    if not blocks and not others:
        raise UnsupportedError(
            f"{found.name}: the method {found.method} trained a head alone; there is nothing to draw"
        )
    moved = found.measure == "update"
    times, label = (100.0, "update / weight, %") if moved else (1.0, "norm of what was trained")
    heights = [0.45 * len(kinds) + 1.2] * bool(blocks) + [0.35 * len(others) + 1.0] * bool(others)
    figure = Figure(figsize=(9, max(sum(heights), 2.4)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.ravel(figure.subplots(len(heights), 1, height_ratios=heights)))
    what = f"how far {found.method} moved {found.base}" if moved else f"what {found.method} put beside {found.base}"
    figure.suptitle(f"{found.name}: {what}", x=0.01, ha="left", fontweight="bold")
    if blocks:
        picture = np.full((len(kinds), len(blocks)), np.nan)
        for (block, kind), value in values.items():
            picture[kinds.index(kind), blocks.index(block)] = times * value
        top = axes.pop(0)
        image = top.imshow(picture, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0)
        top.set_yticks(range(len(kinds)), short_kinds(kinds))
        step = -(-len(blocks) // 16)
        top.set_xticks(range(0, len(blocks), step), [str(block) for block in blocks[::step]])
        top.set_xlabel(found.along)
        figure.colorbar(image, ax=top, label=label, pad=0.01)
    if others:
        axes[0].barh(
            [part.name for part in others], [times * (found.of(part) or 0.0) for part in others], color="#2f6f8f"
        )
        axes[0].invert_yaxis()
        axes[0].set_xlabel(label)
        axes[0].spines[["top", "right"]].set_visible(False)
    content = BytesIO()
    figure.savefig(content, format="png")
    write_atomic(path, content.getvalue())
