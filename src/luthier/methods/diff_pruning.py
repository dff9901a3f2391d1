"""Diff pruning: a difference to the base's weights is trained together with gates that close most of it.

Guo, Rush and Kim 2021, "Parameter-Efficient Transfer Learning with Diff Pruning": W = W0 + z * w (equation 3), with a gate z for every weight that
follows the hard-concrete distribution (Louizos et al. 2018, stretched to (-1.5, 1.5)) and the expected number of open gates in the loss
(section 3.1). After a part of the steps the differences that are largest are chosen, and only they are trained on (section 3.3). While
training, it holds two more parameters for each weight of its targets; the file holds only the chosen ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.methods._parts import train_only
from luthier.methods._targets import choose
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

if TYPE_CHECKING:
    from luthier.methods._difference import Pruning

PAPER = (
    "Guo, Rush and Kim 2021, Parameter-Efficient Transfer Learning with Diff Pruning, https://arxiv.org/abs/2012.07463"
)
FAMILY = "selective"
SAVES = "delta"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "merge"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 2e-4, "weight_decay": 0.0},
    "encoder": {"learning_rate": 1e-3, "weight_decay": 0.0},
    "encoder-decoder": {"learning_rate": 2e-4, "weight_decay": 0.0},
}


class Config(EntryConfig):
    """``share`` of the targets' weights that is left different from the base. ``penalty``: what one gate that is expected to be open
    adds to the loss (the paper's lambda).

    ``choose_at``: the share of the steps after which the largest differences are chosen; a training that ends before, or whose best
    validation came before, keeps every difference whose gate is open. ``gate_rate``: how many times faster gates learn than differences.
    ``targets``: all_linear, or names (or ends of names) of linear layers such as [q_proj, v_proj].
    """

    share: float = Field(0.005, gt=0, le=1)
    penalty: float = Field(1.25e-7, ge=0)
    choose_at: float = Field(0.6, gt=0, lt=1)
    gate_rate: float = Field(100.0, gt=0)
    targets: Literal["all_linear"] | list[str] = "all_linear"


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put a difference of zero, and open gates, on each target. Raises InputError for targets that match nothing."""
    from torch.nn.utils.parametrize import register_parametrization

    from luthier.methods._difference import Difference

    module = inner_of(model)
    layers = [module.get_submodule(name) for name in choose(module, config.targets, where="method.targets")]
    train_only(model, {})
    for layer in layers:
        register_parametrization(layer, "weight", Difference(layer.weight.detach(), config.gate_rate), unsafe=True)
    return model


def steps(model: LoadedModel, config: Config) -> Pruning:
    """What happens around each optimizer step: the penalty's gradient before it, and once, the choice after it."""
    from luthier.methods._difference import Pruning

    return Pruning(model.module, share=config.share, penalty=config.penalty, choose_at=config.choose_at)


def trained_parameters(module: Any, config: Config) -> int:
    """A difference and a gate for every weight of the targets."""
    return 2 * sum(a * b for a, b in choose(module, config.targets, where="method.targets").values())
