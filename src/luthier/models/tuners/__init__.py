"""Adapters that PEFT lacks, as PEFT tuners: after ``register()`` its ``save_pretrained``, ``load_adapter`` and hub layout know them.

Each file here defines ``NAME`` (lower case; PEFT's type is the same in capitals), ``CONFIG`` (a ``peft.PeftConfig``) and ``MODEL`` (a
``peft.tuners.tuners_utils.BaseTuner``). A tuner whose layers read ``luthier.models.rows`` says ``per_row = True`` in its ``MODEL``.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any


@cache
def register() -> tuple[str, ...]:
    """Make every tuner of this folder known to PEFT, once in a process; returns their PEFT types."""
    from peft.utils.peft_types import PeftType, register_peft_method

    names = []
    for name in modules():
        module = importlib.import_module(f"{__name__}.{name}")
        kind = module.NAME.upper()
        if kind not in PeftType.__members__:
            _extend(PeftType, kind)
            register_peft_method(
                name=module.NAME, config_cls=module.CONFIG, model_cls=module.MODEL, prefix=module.MODEL.prefix
            )
        names.append(kind)
    return tuple(names)


def modules() -> list[str]:
    """Names of the files here that hold a tuner; what several share is in files that begin with an underscore."""
    return sorted(each.name for each in pkgutil.iter_modules(__path__) if not each.name.startswith("_"))


def tuner(name: str) -> ModuleType:
    """The file of one tuner, registered with PEFT."""
    register()
    return importlib.import_module(f"{__name__}.{name}")


def _extend(kinds: type, name: str) -> None:
    """A further member of PEFT's enumeration of types: its registration takes no others, and enumerations are closed."""
    member: Any = str.__new__(kinds, name)
    member._name_, member._value_ = name, name
    kinds._member_map_[name] = member  # type: ignore[attr-defined]
    kinds._member_names_.append(name)  # type: ignore[attr-defined]
    kinds._value2member_map_[name] = member  # type: ignore[attr-defined]
    type.__setattr__(kinds, name, member)
