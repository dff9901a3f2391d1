"""What all tuners here share: layers that stand beside the base's weights, and how PEFT finds and names them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn


class TunerLayer(nn.Module, BaseTunerLayer):
    """A module of the base with what adapters put beside it, each under its name. ``NO_MERGE``: why no weight could hold that."""

    NO_MERGE: ClassVar[str]
    # what PEFT's class has, for readers and type checkers, whom torch's own lookup of attributes would mislead
    get_base_layer: Callable[[], Any]
    _move_adapter_to_device_of_base_layer: Callable[[str], None]
    active_adapters: Sequence[str]
    disable_adapters: bool

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Not possible. Raises NotImplementedError."""
        raise NotImplementedError(self.NO_MERGE)

    def unmerge(self) -> None:
        """Nothing is ever merged. Raises NotImplementedError."""
        raise NotImplementedError(self.NO_MERGE)


class TransparentLayer(TunerLayer):
    """One around a module from which the model reads attributes (a block's ``attention_type``): they are the module's."""

    def __getattr__(self, name: str) -> Any:
        """Of this layer, else of the module inside."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


class TunerModel(BaseTuner):
    """A model with such layers in it; ``tuner_layer_cls``: their class or classes."""

    tuner_layer_cls: Any
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}
    per_row = True

    def _wrapped(self, kind: Any, target: Any, target_name: str, parent: Any, *arguments: Any) -> Any:
        """``target``, or a ``kind`` of layer around it in its place where it is none yet."""
        if isinstance(target, kind):
            return target
        layer = kind(target, *arguments)
        self._replace_module(parent, target_name, layer, target)
        return layer

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """PEFT's own way knows parameters and layers under an adapter's name, but no networks of several layers."""
        kinds = cls.tuner_layer_cls if isinstance(cls.tuner_layer_cls, tuple) else (cls.tuner_layer_cls,)
        held = "|".join(name for kind in kinds for name in kind.adapter_layer_names)
        return re.sub(rf"\.({held})\.{re.escape(adapter_name)}(?=\.|$)", r".\1", key)


def entry(names: Iterable[str], key: str) -> str | None:
    """Which of ``names`` is the module ``key``, by name or end of name."""
    return next((name for name in names if key == name or key.endswith(f".{name}")), None)
