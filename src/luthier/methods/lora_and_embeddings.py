"""LoRA on the linear layers, with the token embeddings and the language-model head trained whole, as new tokens need.

Hu et al. 2022 (LoRA) on q, k, v, o, gate, up and down, embeddings and head in full: the setting in which Cui, Yang and Yao 2023,
"Efficient and Effective Text Encoding for Chinese LLaMA and Alpaca", train a vocabulary that was extended. Where the head is
tied to the embeddings they stay one matrix, and so do the embeddings of an encoder-decoder's two stacks. An encoder has no head
of that kind; its embeddings are trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import UnsupportedError
from luthier.methods._peft import check_rank, lora_alpha, target_names, task_type, wrap
from luthier.methods._targets import choose
from luthier.models.adapters import inner_of, tie_trained
from luthier.models.load import LoadedModel

PAPER = "Cui, Yang and Yao 2023, Efficient and Effective Text Encoding for Chinese LLaMA and Alpaca, https://arxiv.org/abs/2304.08177"
FAMILY = "reparametrised"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "merge"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 3e-4},
    "encoder": {"learning_rate": 9e-4},
    "encoder-decoder": {"learning_rate": 3e-4},
}


class Config(EntryConfig):
    """``rank`` r of the correction; ``alpha`` its scale (left out: 2 r, or 2 sqrt(r) with ``rslora``: factor 2 either way).

    ``dropout`` on the input of A. ``targets`` of LoRA: all_linear, or names (or ends of names) of linear layers such as [q_proj, v_proj].
    """

    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all_linear"] | list[str] = "all_linear"
    rslora: bool = False


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put LoRA into the targets and train embeddings and head. Raises InputError for targets that match nothing or too high a rank."""
    from peft import LoraConfig

    inner = inner_of(model)
    chosen = choose(inner, config.targets, where="method.targets")
    check_rank(chosen, config.rank)
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=lora_alpha(config.alpha, config.rank, rslora=config.rslora),
        lora_dropout=config.dropout,
        target_modules=target_names(config.targets, chosen),
        use_rslora=config.rslora,
        modules_to_save=whole_modules(inner),
        ensure_weight_tying=shares(inner),
        task_type=task_type(model),
    )
    built = wrap(model, settings, method="lora_and_embeddings")
    tie_trained(inner_of(built), "default", settings)  # PEFT knows the embeddings of some architectures only
    return built


def whole_modules(inner: Any) -> list[str]:
    """Names of the embeddings and, of a language model, the head. Raises UnsupportedError for a model without embeddings."""
    names = {id(layer): name for name, layer in inner.named_modules()}
    embeddings, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    if embeddings is None:
        raise UnsupportedError(f"method lora_and_embeddings finds no token embeddings in {type(inner).__name__}")
    return [names[id(layer)] for layer in (embeddings, head) if layer is not None]


def shares(inner: Any) -> bool:
    """Whether the matrix of the embeddings has another place in the model: the head, or the stacks of an encoder-decoder."""
    embeddings = inner.get_input_embeddings()
    return any(
        layer is not embeddings and getattr(layer, "weight", None) is embeddings.weight for layer in inner.modules()
    )


def trained_parameters(module: Any, config: Config) -> int:
    """r (inputs + outputs) of every target + vocabulary times width, twice where the head is a matrix of its own."""
    chosen = choose(module, config.targets, where="method.targets").values()
    parameters = [p for name in whole_modules(module) for p in module.get_submodule(name).parameters()]
    whole: int = sum(p.numel() for p in {id(p): p for p in parameters}.values())
    return sum(config.rank * (inputs + outputs) for inputs, outputs in chosen) + whole
