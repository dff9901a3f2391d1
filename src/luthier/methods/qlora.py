"""QLoRA: LoRA beside base weights that are held in 4 bits.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", equation 5: h = x dequantized(W) + s x A B, with W in NF4 and its
constants quantized again. The gradient goes through the dequantized weights to A and B, which alone are trained, in the model's dtype. LoRA is
on all linear layers, which the paper finds matters more than the rank (section 4, figure 2 and appendix A). The base stays in 4 bits
wherever the adapter answers; merged, it is the dequantized weights plus B A in plain form, and the gain in memory is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import MismatchError
from luthier.methods._peft import check_rank, lora_alpha, target_names, task_type, wrap
from luthier.methods._targets import choose
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

if TYPE_CHECKING:
    from luthier.models.quantize import Quantization

PAPER = "Dettmers et al. 2023, QLoRA: Efficient Finetuning of Quantized LLMs, https://arxiv.org/abs/2305.14314"
FAMILY = "reparametrised"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "merge"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-3},
    "encoder": {"learning_rate": 2e-3},
    "encoder-decoder": {"learning_rate": 1e-3},
}


class Config(EntryConfig):
    """``quantization`` nf4 or fp4 of all linear layers of the base but its head; ``double_quantization`` of each block's constant, 0.37 bits a
    weight less; ``blocksize``: weights that share a constant (fewer are nearer to the base and take more).

    ``rank`` r of the correction; ``alpha`` its scale (left out: 2 r, or 2 sqrt(r) with ``rslora``: factor 2 either way). ``dropout`` on the input
    of A. ``targets``: all_linear, or names (or ends of names) of linear layers such as [q_proj, v_proj].
    """

    quantization: Literal["nf4", "fp4"] = "nf4"
    double_quantization: bool = True
    blocksize: Literal[64, 128, 256, 512, 1024] = 64
    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all_linear"] | list[str] = "all_linear"
    rslora: bool = False


def quantization(config: Config) -> Quantization:
    """How the base is to be held; loading it so takes less memory than changing it afterwards."""
    from luthier.models.quantize import Quantization

    return Quantization(config.quantization, config.double_quantization, config.blocksize)


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Quantize the base unless it was loaded so, and wrap it in a PEFT model; only A, B and an encoder's head are trained.

    Raises InputError for targets that match nothing or a rank above a target's smaller side, MissingExtraError without bitsandbytes,
    MismatchError for a base that is quantized in another way.
    """
    from peft import LoraConfig

    from luthier.models.quantize import quantize

    inner = inner_of(model)
    chosen = choose(inner, config.targets, where="method.targets")
    check_rank(chosen, config.rank)
    wanted = quantization(config)
    if model.quantization is None:
        quantize(inner, wanted)
        model.quantization = wanted
    elif model.quantization != wanted:
        raise MismatchError(f"method qlora must be given a plain base or one in {wanted}; got {model.quantization}")
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=lora_alpha(config.alpha, config.rank, rslora=config.rslora),
        lora_dropout=config.dropout,
        target_modules=target_names(config.targets, chosen),
        use_rslora=config.rslora,
        task_type=task_type(model),
    )
    return wrap(model, settings, method="qlora")


def trained_parameters(module: Any, config: Config) -> int:
    """r (inputs + outputs) of every target."""
    return sum(config.rank * sum(shape) for shape in choose(module, config.targets, where="method.targets").values())
