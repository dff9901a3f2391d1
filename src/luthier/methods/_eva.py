"""A of every LoRA layer from what the layer is given: the directions in which its inputs spread most.

Paischer et al. 2024, "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation": the first r right
singular vectors of the inputs X of a layer become the rows of its A; B is zero. They are the first eigenvectors of X'X, which is summed
example by example. Ranks are not moved between layers here; ``ranks`` can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError
from luthier.data.render_source import Pair, SourceRenderer
from luthier.methods._examples import answered, first, pair_of
from luthier.models.load import LoadedModel

if TYPE_CHECKING:
    from torch import Tensor

Row = list[int] | Pair
"""Token ids of a text, or of an encoder-decoder's source and target."""

_BYTES_A_PASS = 2**30
"""Of X'X matrices held at once; layers beyond that wait for another pass over the examples."""


def examples(model: LoadedModel, data: str, samples: int, rank: int) -> list[Row]:
    """Token ids of the first ``samples`` examples of the file ``data``, with their answers.

    Raises DataError for a file without usable examples, and for examples with fewer tokens in all than ``rank``, which they must span.
    """
    rows = list(_rows(model, data, samples))
    shortest = [len(row) if isinstance(row, list) else min(len(row.source), len(row.target)) for row in rows]
    tokens = sum(shortest)  # no layer is given fewer
    if tokens < rank:
        raise DataError(
            f"method.data: {data} has {tokens} tokens in its first {samples} examples; rank {rank} needs more"
            + (" in their answers" if model.architecture == "encoder-decoder" else "")
        )
    return rows


def begin(model: LoadedModel, wrapped: Any, rows: list[Row]) -> None:
    """Set A of every LoRA layer in ``wrapped`` from what ``rows`` give it. Nothing happens to layers that are only shapes (``meta``)."""
    import torch
    from peft.tuners.lora.layer import LoraLayer

    layers = {name: layer for name, layer in wrapped.named_modules() if isinstance(layer, LoraLayer)}
    if any(layer.get_base_layer().weight.device.type == "meta" for layer in layers.values()):
        return
    (adapter,) = wrapped.active_adapters
    training = model.module.training
    model.module.eval()
    with torch.no_grad():
        for names, products in _products(model, layers, rows):
            vectors = torch.linalg.eigh(products).eigenvectors.flip(1)
            for name in names:
                weight = layers[name].lora_A[adapter].weight
                weight.copy_(vectors[:, : weight.shape[0]].T)
    model.module.train(training)


def _products(model: LoadedModel, layers: Mapping[str, Any], rows: list[Row]) -> Iterator[tuple[list[str], Tensor]]:
    """Layers that are given the same input, and X'X of that input over all rows, fp32."""
    import torch

    groups = list(_alike(model, layers, rows[0]).values())
    while groups:
        part: list[list[str]] = []
        held = 0
        while groups and (not part or held + 4 * layers[groups[0][0]].in_features ** 2 <= _BYTES_A_PASS):
            held += 4 * layers[groups[0][0]].in_features ** 2
            part.append(groups.pop(0))
        sums = {
            names[0]: torch.zeros(layers[names[0]].in_features, layers[names[0]].in_features, device=model.device)
            for names in part
        }

        def add(name: str, given: Tensor, sums: dict[str, Tensor] = sums) -> None:
            x = given.reshape(-1, given.shape[-1]).float()
            sums[name].addmm_(x.T, x)

        for row in rows:
            _forward(model, {name: layers[name] for name in sums}, row, add)
        yield from ((names, sums[names[0]]) for names in part)


def _alike(model: LoadedModel, layers: Mapping[str, Any], row: Row) -> dict[int, list[str]]:
    """The layers grouped by the tensor that they are given."""
    groups: dict[int, list[str]] = {}
    alive = []  # a freed tensor's id would be given out again

    def note(name: str, given: Tensor) -> None:
        alive.append(given)
        groups.setdefault(id(given), []).append(name)

    _forward(model, layers, row, note)
    return groups


def _forward(model: LoadedModel, layers: Mapping[str, Any], row: Row, see: Callable[[str, Tensor], None]) -> None:
    """One forward of ``row``; ``see`` is told what each of the layers is given."""
    import torch

    from luthier.models.decode import hidden_states
    from luthier.models.seq2seq import decode, encode

    def hook(name: str) -> Any:
        return lambda layer, given: see(name, given[0])

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    ids = torch.tensor([row.source if isinstance(row, Pair) else row], device=model.device)
    try:
        if isinstance(row, Pair):
            assert isinstance(model.renderer, SourceRenderer)
            shown = torch.tensor([[*model.renderer.opening, *row.target[:-1]]], device=model.device)
            mask = torch.ones_like(ids)
            decode(model.module, shown, encode(model.module, ids, mask), mask)
        elif model.architecture == "decoder":
            hidden_states(model.module, ids)
        else:
            model.module.body(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for each in hooks:
            each.remove()


def _rows(model: LoadedModel, data: str, samples: int) -> Iterator[Row]:
    """Token ids of the first examples, with their answers, that fit the model's context."""
    from luthier.models.encoder import encode_texts

    most, used = model.context_length or 512, 0
    for example in first(data, samples):
        row: Row | None
        if model.renderer is None:
            row = encode_texts(model.tokenizer, [example.text], most)[0]
        elif isinstance(model.renderer, SourceRenderer):
            row = pair_of(model.renderer, example, most)
        else:
            row = model.renderer.training_ids(answered(example)).ids
        if row is not None and (isinstance(row, Pair) or 1 < len(row) <= most):
            used += 1
            yield row
    if not used:
        raise DataError(f"method.data: {data} holds no example that fits the model's context")
