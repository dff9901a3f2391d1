"""FISH mask: a fixed, small share of single weights is trained, those with the largest Fisher information.

Sung, Nair and Raffel 2021, "Training Neural Networks with Fixed Sparse Masks", equation 5: the information of a weight is estimated as
the mean over N examples x of E over y ~ p(y | x) of (d log p(y | x) / d weight) squared, here with one y drawn from the model's own
distribution for each example. The estimate needs examples before training begins: ``data`` names the file they come from, best
the one that is trained on. Of decoders y are the tokens of the answer (of the whole text where there is none), of encoders the label,
of encoder-decoders the tokens of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import DataError, UnsupportedError
from luthier.data.render_source import Pair, SourceRenderer
from luthier.methods._examples import answered, first, pair_of
from luthier.methods._parts import train_only
from luthier.methods._targets import choose
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

if TYPE_CHECKING:
    from torch import Tensor

PAPER = "Sung, Nair and Raffel 2021, Training Neural Networks with Fixed Sparse Masks, https://arxiv.org/abs/2111.09839"
FAMILY = "selective"
SAVES = "delta"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "merge"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 5e-4},
    "encoder": {"learning_rate": 3e-3},
    "encoder-decoder": {"learning_rate": 5e-4},
}


class Config(EntryConfig):
    """``data``: the file of examples that the information is estimated on, in any format that ``luthier data`` reads; a relative path
    counts from where the command runs.

    ``share`` of the targets' weights that is trained. ``samples``: how many examples of the file are used, its first ones. ``targets``:
    all_linear, or names (or ends of names) of linear layers such as [q_proj, v_proj].
    """

    data: str
    share: float = Field(0.005, gt=0, le=1)
    samples: int = Field(64, ge=1)
    targets: Literal["all_linear"] | list[str] = "all_linear"


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Estimate the information, then put the chosen entries of each target under training.

    Costs a forward and a backward pass for each sample, and memory for one fp32 copy of the targets. Raises InputError for targets that
    match nothing, DataError for a file without usable examples.
    """
    from torch.nn.utils.parametrize import register_parametrization

    from luthier.models.delta import Entries

    module = inner_of(model)
    layers = {name: module.get_submodule(name) for name in choose(module, config.targets, where="method.targets")}
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    most = max(1, round(config.share * sum(sizes.values())))
    rows = list(_rows(model, config))
    if model.device.type == "meta":  # a sketch: only how many counts
        places = _spread(sizes, most)
    else:
        places = _largest(information(model, {name: layer.weight for name, layer in layers.items()}, rows), most)
    train_only(model, {})
    for name, chosen in places.items():
        if len(chosen):
            values = layers[name].weight.detach().reshape(-1)[chosen].clone()
            register_parametrization(layers[name], "weight", Entries(chosen, values), unsafe=True)
    return model


def information(model: LoadedModel, weights: Mapping[str, Any], rows: list[Any]) -> dict[str, Tensor]:
    """Name -> estimated diagonal of the Fisher information, fp32 in the weight's shape; one draw of y for each row."""
    import torch

    found = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    model.module.eval()
    train_only(model, weights)
    for row in rows:
        loss = _surprise(model, row)
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for total, gradient in zip(found.values(), gradients, strict=True):
            if gradient is not None:
                total.add_(gradient.float().square(), alpha=1.0 / len(rows))
    return found


def _surprise(model: LoadedModel, row: Any) -> Tensor:
    """-log p(y | x) with y drawn from p(y | x)."""
    import torch

    from luthier.models.seq2seq import answer_logits

    if isinstance(row, Pair):
        assert isinstance(model.renderer, SourceRenderer)
        logits = answer_logits(model.module, row.source, row.target, model.renderer.opening, model.device)
    elif model.architecture == "encoder":
        ids = torch.tensor([row[0]], device=model.device)
        logits = model.module(ids, torch.ones_like(ids))
    else:
        ids = torch.tensor([row[0]], device=model.device)
        keep = torch.tensor(row[1][1:], device=model.device)  # the logits at t say what comes at t + 1
        logits = model.module(ids).logits[0, :-1][keep]
    log_probs = logits.float().log_softmax(-1)
    drawn = torch.multinomial(log_probs.detach().exp(), 1)
    surprise: Tensor = -log_probs.gather(-1, drawn).sum()
    return surprise


def _rows(model: LoadedModel, config: Config) -> Iterator[tuple[list[int], list[bool]] | Pair]:
    """(token ids, which of them are drawn) of the first examples that fit the model's context; of an encoder-decoder source and answer."""
    from luthier.models.encoder import encode_texts

    if model.architecture == "encoder" and model.module.head is None:
        raise UnsupportedError("method fish_mask needs an encoder with labels", hint="use labelled data")
    used = 0
    for example in first(config.data, config.samples):
        if model.renderer is None:
            ids = encode_texts(model.tokenizer, [example.text], model.context_length or 512)[0]
            mask = [True] * len(ids)
        elif isinstance(model.renderer, SourceRenderer):
            pair = pair_of(model.renderer, example, model.context_length)
            if pair is not None:
                used += 1
                yield pair
            continue
        else:
            ids, mask = _conversation(model.renderer, example)
            if not 1 < len(ids) <= (model.context_length or len(ids)):
                continue
        used += 1
        yield ids, mask
    if not used:
        needed = "no example with an answer" if model.architecture == "encoder-decoder" else "no example"
        raise DataError(f"method.data: {config.data} holds {needed} that fits the model's context")


def _conversation(renderer: Any, example: Any) -> tuple[list[int], list[bool]]:
    """An example's tokens, and which of them are the answer; all where there is none."""
    messages = answered(example)
    if any(message.role == "assistant" for message in messages):
        rendered = renderer.training_ids(messages)
        if any(rendered.mask[1:]):
            return rendered.ids, rendered.mask
        return rendered.ids, [True] * len(rendered.ids)
    ids = renderer.prompt_ids(messages)
    return ids, [True] * len(ids)


def _largest(found: Mapping[str, Tensor], most: int) -> dict[str, Tensor]:
    """Name -> ascending positions of the entries that are among the ``most`` largest of all."""
    import torch

    flat = torch.cat([scores.reshape(-1) for scores in found.values()])
    chosen = flat.topk(min(most, len(flat))).indices.sort().values
    out, start = {}, 0
    for name, scores in found.items():
        inside = (chosen >= start) & (chosen < start + scores.numel())
        out[name] = chosen[inside] - start
        start += scores.numel()
    return out


def _spread(sizes: Mapping[str, int], most: int) -> dict[str, Tensor]:
    """``most`` positions shared out among the layers by size."""
    import torch

    out, before, given = {}, 0, 0
    for name, size in sizes.items():
        before += size
        upto = round(most * before / sum(sizes.values()))
        out[name], given = torch.arange(min(upto - given, size), device="meta"), upto
    return out
