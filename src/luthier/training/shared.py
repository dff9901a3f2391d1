"""What the trainings of one process share: base weights, and rows that were tokenised (or whose frozen features were computed) before.

A tournament tunes several models on one base and one dataset. Each result is the one that a command of its own would give, bit for
bit: a copy of weights is those weights, and a base whose loading draws random numbers is not copied, because what is made after it
(a new head) would then begin elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from luthier.core.dataset import Dataset
from luthier.core.digest import digest_json
from luthier.core.model import ModelRecord

if TYPE_CHECKING:
    from luthier.models.load import LoadedModel
    from luthier.models.quantize import Quantization
    from luthier.store.database import Store

_SHARE_OF_FREE_MEMORY = 0.1


@dataclass(frozen=True)
class Rows:
    """An objective's rows of one dataset, and which examples were left out or cut short."""

    rows: Sequence[Any]
    dropped: tuple[str, ...] = ()
    truncated: tuple[str, ...] = ()


@dataclass
class Shared:
    """A memory for as long as its owner keeps it. ``found`` counts what was not done again."""

    found: dict[str, int] = field(default_factory=lambda: {"bases": 0, "rows": 0})
    _bases: dict[tuple[str, str, str], LoadedModel] = field(default_factory=dict)
    _rows: dict[str, Rows] = field(default_factory=dict)
    _sketches: dict[str, LoadedModel] = field(default_factory=dict)

    def load(
        self,
        store: Store,
        record: ModelRecord,
        *,
        dtype: str,
        device: str,
        labels: Sequence[str] = (),
        quantization: Quantization | None = None,
    ) -> LoadedModel:
        """As ``models.load.load_model``. A base in plain weights that is small beside the free memory is read once and copied afterwards."""
        import torch

        from luthier.models.encoder import new_head
        from luthier.models.load import load_model

        key = (record.digest, dtype, device)
        if quantization is not None or key not in self._bases:
            if quantization is not None or not _is_small(record):
                return load_model(store, record, dtype=dtype, device=device, labels=labels, quantization=quantization)
            before = torch.get_rng_state()
            loaded = load_model(store, record, dtype=dtype, device=device)
            if not torch.equal(before, torch.get_rng_state()):
                torch.set_rng_state(before)
                return load_model(store, record, dtype=dtype, device=device, labels=labels)
            self._bases[key] = loaded
        else:
            self.found["bases"] += 1
        known = self._bases[key]
        model = replace(known, module=copy.deepcopy(known.module), attached={}, selected=None)
        if labels and model.architecture == "encoder":
            model.module.head = new_head(model.module.width, len(labels)).to(model.device)
            model.labels = tuple(labels)
        return model

    def rows(self, key: Sequence[Any], prepare: Callable[[], Rows]) -> Rows:
        """What ``prepare`` gives, or gave before for an equal ``key``."""
        digest = digest_json(list(key))
        if digest in self._rows:
            self.found["rows"] += 1
        else:
            self._rows[digest] = prepare()
        return self._rows[digest]

    def sketch(self, key: Sequence[Any], make: Callable[[], LoadedModel]) -> LoadedModel:
        """A model of shapes only, its module a copy that a method may change."""
        digest = digest_json(list(key))
        if digest not in self._sketches:
            self._sketches[digest] = make()
        known = self._sketches[digest]
        return replace(known, module=copy.deepcopy(known.module))

    def clear(self) -> None:
        """Forget everything, so that its memory is free for what comes next."""
        self._bases.clear()
        self._rows.clear()
        self._sketches.clear()


def prepare_rows(
    dataset: Dataset, model: LoadedModel, objective: Any, prompt: Any, config: Any, overlong: Any, shared: Shared | None
) -> Rows:
    """The rows that ``objective`` (a catalogue entry) makes of ``dataset`` for ``model``; those of an equal request come from ``shared``.

    They depend on the data, the tokenizer and template, the prompt, the labels and the limits; where the body of an encoder is frozen they
    hold its features, which also depend on the weights (and on whether there are any: a sketch has none). Settings of the objective
    that it names in ``LOSS_ONLY`` change no row.
    """
    from luthier.objectives._rows import Limits

    def prepare() -> Rows:
        limits = Limits(model.context_length, overlong)
        rows = objective.module.prepare(dataset, model, prompt, config, limits)
        return Rows(rows, tuple(limits.dropped), tuple(limits.truncated))

    if shared is None:
        return prepare()
    return shared.rows(rows_key(dataset, model, objective, prompt, config, overlong), prepare)


def rows_key(
    dataset: Dataset, model: LoadedModel, objective: Any, prompt: Any, config: Any, overlong: Any
) -> list[Any]:
    """What an objective's rows depend on."""
    from luthier.models.heads import answers_of, describe

    loss_only = objective.optional("LOSS_ONLY") or ()
    frozen = model.architecture == "encoder" and model.module.body_is_frozen
    return [
        dataset.digest,
        [objective.name, config.model_dump(mode="json", exclude_unset=True, exclude=set(loss_only))],
        prompt.digest,
        [describe(model.head)] if answers_of(model.head) else list(model.labels),
        [model.base.digest, model.template_digest],
        [model.context_length, overlong],
        [frozen, str(model.dtype), str(model.device)] if frozen else [],
    ]


def _is_small(record: ModelRecord) -> bool:
    from luthier.training.memory import free_mb

    return record.kind == "base" and record.size_bytes / 1e6 < _SHARE_OF_FREE_MEMORY * free_mb()
