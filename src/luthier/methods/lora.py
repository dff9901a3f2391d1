"""LoRA: a low-rank correction beside each chosen weight matrix; the base stays frozen.

Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models": h = W x + (alpha / r) B A x, with A random and B zero at the
start. Rank-stabilised scaling alpha / sqrt(r) is Kalajdzievski 2023. Other beginnings: PiSSA (Meng, Wang and Zhang 2024), OLoRA
(Büyükakyüz 2024), EVA (Paischer et al. 2024). Encoders get LoRA in the body and a trained head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from luthier.core.catalog import EntryConfig
from luthier.core.errors import InputError, did_you_mean
from luthier.methods import _eva, _lora_start
from luthier.methods._peft import Chosen, check_rank, lora_alpha, target_names, task_type, wrap
from luthier.methods._targets import choose
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = "Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models, https://arxiv.org/abs/2106.09685"
FAMILY = "reparametrised"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "swap"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-3},
    "encoder": {"learning_rate": 2e-3},
    "encoder-decoder": {"learning_rate": 1e-3},
}
_LATER = {"init", "ranks", "alphas", "data", "samples"}


class Config(EntryConfig):
    """``rank`` r of the correction; ``alpha`` its scale (left out: 2 r, or 2 sqrt(r) with ``rslora``: factor 2 either way).

    ``dropout`` on the input of A. ``targets``: all_linear, or names (or ends of names) of linear layers such as [q_proj, v_proj]. ``ranks``
    and ``alphas`` give single layers their own, by name or end of name: ``{down_proj: 16, layers.0.self_attn.q_proj: 4}``; a layer with
    a rank of its own keeps the factor alpha / r unless ``alphas`` names it too.

    ``init``: how A and B begin. kaiming and gaussian draw A and leave B at zero. orthogonal draws both so that B A is zero. pissa makes them the
    main singular directions of the weight (pissa_fast: approximately, in a fraction of the time) and olora its QR factors; both train
    what they take out of the base, and their file holds twice the ranks so that it fits the base as it was. eva makes A the directions in
    which the layers' inputs spread most, over the first ``samples`` examples of the file ``data`` (best the one that is trained on; a
    relative path counts from where the command runs).
    """

    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all_linear"] | list[str] = "all_linear"
    rslora: bool = False
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "pissa_fast", "olora", "eva"] = "kaiming"
    data: str | None = None
    samples: int = Field(64, ge=1)
    ranks: dict[str, int] = Field(default_factory=dict)
    alphas: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _together(self) -> Config:
        """Options that only mean something together."""
        if self.init == "eva" and self.data is None:
            raise ValueError("init eva needs data: the file whose examples show what the layers are given")
        if self.init != "eva" and self.model_fields_set & {"data", "samples"}:
            raise ValueError(f"data and samples are for init eva; got init {self.init}")
        return self

    @model_serializer(mode="wrap")
    def _told(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Options that came later than the first release are told only when they are given, so that earlier work is found again."""
        values: dict[str, Any] = plain(self)
        return {
            k: v
            for k, v in values.items()
            if k not in _LATER or v != type(self).model_fields[k].get_default(call_default_factory=True)
        }

    def scale_of(self, rank: int) -> float:
        """alpha of a layer of that rank, worked out."""
        if self.alpha is not None:
            return self.alpha * float((rank / self.rank) ** (0.5 if self.rslora else 1.0))
        return lora_alpha(None, rank, rslora=self.rslora)


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Wrap the decoder (or the encoder's body) in a PEFT model; only A, B and an encoder's head are trained.

    Raises InputError for targets that match nothing, or a rank above a target's smaller side (it could not add anything).
    """
    from peft import LoraConfig

    chosen = choose(inner_of(model), config.targets, where="method.targets")
    ranks = layer_ranks(chosen, config)
    alphas = {name: config.scale_of(rank) for name, rank in ranks.items()} | _by_layer(chosen, config.alphas, "alphas")
    if config.init == "orthogonal" and any(rank % 2 for rank in ranks.values()):
        raise InputError(f"method.rank must be even with init orthogonal; got {config.rank} and {config.ranks}")
    rows = _eva.examples(model, config.data, config.samples, max(ranks.values())) if config.data is not None else []
    general = config.scale_of(config.rank)
    started: Any = {"kaiming": True, "gaussian": "gaussian", "orthogonal": "orthogonal"}.get(config.init, True)
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=general,
        lora_dropout=config.dropout,
        target_modules=target_names(config.targets, chosen),
        use_rslora=config.rslora,
        init_lora_weights=started,
        rank_pattern={_exactly(name): rank for name, rank in ranks.items() if rank != config.rank},
        alpha_pattern={_exactly(name): alpha for name, alpha in alphas.items() if alpha != general},
        task_type=task_type(model),
    )
    built = wrap(model, settings, method="lora")
    if config.init in ("pissa", "pissa_fast", "olora"):
        _lora_start.begin(inner_of(built), config.init)
    elif rows:
        _eva.begin(built, inner_of(built), rows)
    return built


def layer_ranks(chosen: Chosen, config: Config) -> dict[str, int]:
    """The rank of every chosen layer. Raises InputError for a rank that is too high, and for names that match none of them."""
    own = _by_layer(chosen, config.ranks, "ranks")
    ranks = {name: int(own.get(name, config.rank)) for name in chosen}
    for name, rank in ranks.items():
        where = "method.ranks" if name in own else "method.rank"
        if rank < 1:
            raise InputError(f"{where} must be at least 1; got {rank} for {name}")
    general = {name: shape for name, shape in chosen.items() if name not in own}
    if general:
        check_rank(general, config.rank)
    for name in own:
        check_rank({name: chosen[name]}, ranks[name], where="method.ranks")
    return ranks


def _by_layer(chosen: Chosen, given: Mapping[str, float], key: str) -> dict[str, float]:
    """Values by full layer name; of two keys that match, the longer (more exact) one counts."""
    found: dict[str, float] = {}
    for ending in sorted(given, key=len):
        matches = [name for name in chosen if name == ending or name.endswith(f".{ending}")]
        if not matches:
            known = {name.rsplit(".", 1)[-1] for name in chosen}
            raise InputError(
                f"method.{key} must name layers that are targets; got {ending!r}, which matches none. "
                f"{did_you_mean(ending.rsplit('.', 1)[-1], known)}"
            )
        found |= dict.fromkeys(matches, given[ending])
    return found


def _exactly(name: str) -> str:
    """A pattern for PEFT that this layer's name alone fits."""
    return "^" + re.escape(name)


def trained_parameters(module: Any, config: Config) -> int:
    """r (inputs + outputs) of every target."""
    chosen = choose(module, config.targets, where="method.targets")
    ranks = layer_ranks(chosen, config)
    return sum(ranks[name] * (inputs + outputs) for name, (inputs, outputs) in chosen.items())
