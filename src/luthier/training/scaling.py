"""``luthier scaling``: several small trainings from random weights, and the law by which their loss falls with size and tokens.

Every training is an ordinary run: it is in the store, it goes on after an interruption, and it is not done twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from luthier.core.config import Document, from_mapping, read_yaml, validate
from luthier.core.digest import digest_json
from luthier.core.errors import DataError, InputError, TrainingError
from luthier.core.run import MetricSink, Progress, no_progress
from luthier.models.new import SIZES
from luthier.store import runs
from luthier.store.database import Store, open_store
from luthier.training.config import _Section
from luthier.training.scaling_fit import Fit, Optimum, Point, fit

if TYPE_CHECKING:
    from luthier.training.preflight import Prediction
    from luthier.training.resolve import Job

PLOT = "scaling.png"
_SHAPE = ("size", "layers", "width", "heads", "kv_heads", "inner")
_MANY_EPOCHS = 100_000.0  # the token budget ends a training, not the epochs


class Grid(_Section):
    """``sizes``: names of sizes (``5m``) or shapes (``{layers: 4, width: 128, heads: 4}``); left out, the run's own. ``tokens``: of each training; left out,
    as many as the run's own epochs make. Every size is trained on every number of tokens."""

    sizes: tuple[str | dict[str, int], ...] = ()
    tokens: tuple[int, ...] = ()

    @field_validator("sizes")
    @classmethod
    def _shapes(cls, value: tuple[str | dict[str, int], ...]) -> tuple[str | dict[str, int], ...]:
        for each in value:
            if isinstance(each, str) and each not in SIZES:
                raise ValueError(f"a size must be one of {', '.join(SIZES)}, or a shape; got {each!r}")
            if isinstance(each, dict) and (unknown := sorted(set(each) - set(_SHAPE))):
                raise ValueError(f"a shape holds {', '.join(_SHAPE[1:])}; got {unknown[0]!r}")
        return value

    @field_validator("tokens", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        numbers = value if isinstance(value, list | tuple) else [value]
        found = [int(n) if isinstance(n, float) and n.is_integer() else n for n in numbers]
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in found):
            raise ValueError("tokens must be whole numbers of at least 1, such as [5e5, 1e6, 2e6]")
        return found


class ScalingConfig(_Section):
    """``run``: what all trainings have in common, a run of a new model (``model: {new: ...}``), or the name of its file. ``grid``: what varies. ``budgets``:
    floating-point operations to advise on; left out, 1, 10 and 100 times the largest training. ``count``: which parameters are N.
    ``bootstrap``: resamples for the intervals."""

    name: str | None = Field(None, min_length=1)
    run: dict[str, Any] | str
    grid: Grid
    budgets: tuple[float, ...] = ()
    count: Literal["all", "without_embeddings"] = "all"
    bootstrap: int = Field(100, ge=0, le=10_000)


@dataclass(frozen=True)
class Cell:
    """One training of the grid that was done: ``loss`` on held-out rows, in nats a token."""

    size: str
    model: str
    run: str
    parameters: int
    without_embeddings: int
    tokens: int
    loss: float
    seconds: float
    reused: bool


@dataclass(frozen=True)
class Planned:
    """One training of the grid before it is done."""

    size: str
    tokens: int | None
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """What was trained and what follows. ``fit`` is None where the runs cannot tell a law: ``why`` says what is missing. ``notes`` are doubts."""

    name: str
    cells: tuple[Cell, ...]
    fit: Fit | None
    optima: tuple[Optimum, ...]
    why: str = ""
    notes: tuple[str, ...] = ()
    plot: str = ""
    run: str = ""
    count: str = "all"

    def size_of(self, cell: Cell) -> int:
        """N of a training, as ``count`` says."""
        return cell.parameters if self.count == "all" else cell.without_embeddings

    def points(self) -> list[Point]:
        """What the law is fitted to."""
        return [Point(self.size_of(cell), cell.tokens, cell.loss) for cell in self.cells]

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        fitted = {"fit": self.fit.as_dict() if self.fit is not None else None}
        return {k: v for k, v in asdict(self).items() if k != "fit"} | fitted

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Report:
        """Inverse of ``as_dict``."""
        fields = dict(data)
        fitted = fields.pop("fit")
        fields["cells"] = tuple(Cell(**cell) for cell in fields["cells"])
        fields["optima"] = tuple(Optimum(**best) for best in fields["optima"])
        return Report(**{**fields, "notes": tuple(fields["notes"])}, fit=Fit.from_dict(fitted) if fitted else None)


def scaling(
    config: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    store: Store | None = None,
    progress: Progress = no_progress,
    metrics: MetricSink | None = None,
    began: Callable[[Planned, int, int], None] | None = None,
) -> Report:
    """Train the grid of ``config`` (a YAML file or its values), fit the law, and advise. What was trained before is not trained again.

    ``began`` is told each training with its number and how many there are. A training whose loss stops being a number is left out and noted.
    Raises InputError and its kin for what cannot work; KeyboardInterrupt with a checkpoint: the same call goes on.
    """
    from luthier.training.tune import tune

    store = store or open_store()
    wanted, planned = read_grid(config, overrides)
    cells: list[Cell] = []
    notes: list[str] = []
    unique = 0
    for number, each in enumerate(planned, 1):
        if began is not None:
            began(each, number, len(planned))
        try:
            made = tune(each.config, store=store, progress=progress, metrics=metrics)
        except TrainingError as error:
            notes.append(f"size {each.size}, {each.tokens or 'all'} tokens: left out, {error.message}")
            continue
        cells.append(_cell(store, each, made))
        unique = max(unique, int((made.summary.get("advice") or {}).get("unique", 0)))
    return _report(store, wanted, tuple(cells), notes, unique)


def read_grid(
    config: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()
) -> tuple[ScalingConfig, tuple[Planned, ...]]:
    """The configuration and its trainings, smallest first. Raises InputError."""
    document = from_mapping(config, overrides) if isinstance(config, Mapping) else read_yaml(config, overrides)
    wanted = validate(ScalingConfig, document.values, origins=document.origins)
    inner = document
    if isinstance(wanted.run, str):
        inner = read_yaml(document.path(wanted.run))
    common = _absolute(inner.values if isinstance(wanted.run, str) else wanted.run, inner)
    model = common.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("new"), Mapping):
        raise InputError(
            "run.model must be a new model: scaling trains from random weights",
            hint="run: {model: {new: {architecture: llama, ...}}, data: ...}",
        )
    if "name" in common or "name" in model["new"]:
        raise InputError("run.name and run.model.new.name must be left out: every training of the grid has its own")
    if not wanted.grid.sizes and not wanted.grid.tokens:
        raise InputError(
            "grid must hold sizes, tokens or both", hint="grid: {sizes: [1m, 2m, 5m], tokens: [5e5, 1e6, 2e6]}"
        )
    return wanted, tuple(
        _planned(common, size, tokens)
        for tokens in wanted.grid.tokens or (None,)
        for size in wanted.grid.sizes or (None,)
    )


def _absolute(values: Mapping[str, Any], document: Document) -> dict[str, Any]:
    """The same with the data's files named from the root: relative names are relative to the document's folder."""
    found = copy.deepcopy(dict(values))
    data = found.get("data")
    for section in [data, *(data.get("sources") or ())] if isinstance(data, dict) else ():
        for key in ("path", "train", "validation", "test"):
            name = section.get(key) if isinstance(section, dict) else None
            if isinstance(name, str) and not name.startswith("hub:"):
                section[key] = str(document.path(name).absolute())
    return found


def _planned(common: Mapping[str, Any], size: str | dict[str, int] | None, tokens: int | None) -> Planned:
    config = copy.deepcopy(dict(common))
    shape = config["model"]["new"]
    if size is not None:
        shape = {key: value for key, value in shape.items() if key not in _SHAPE}
        config["model"]["new"] = shape | ({"size": size} if isinstance(size, str) else size)
    if tokens is not None:
        config["train"] = {**(config.get("train") or {}), "max_tokens": tokens, "epochs": _MANY_EPOCHS}
    named = size if size is not None else shape.get("size") or {key: shape[key] for key in _SHAPE if key in shape}
    if isinstance(named, Mapping):
        named = f"{named.get('layers', '?')}x{named.get('width', '?')}"
    return Planned(str(named), tokens, config)


def _cell(store: Store, planned: Planned, made: Any) -> Cell:
    from luthier.store.models import find

    summary, base = made.summary, find(store, made.model.base)
    if "validation_loss" not in summary:
        raise DataError(
            "scaling compares losses on held-out rows, and there are none",
            hint="data.split.validation=0.1, or data.validation=FILE",
        )
    return Cell(
        size=planned.size,
        model=made.model.name,
        run=made.run.id,
        parameters=int(base.meta["parameters"]),
        without_embeddings=int(base.meta["without_embeddings"]),
        tokens=int(summary["tokens"]),
        loss=float(summary["validation_loss"]),
        seconds=float(summary["train_s"]),
        reused=made.reused,
    )


def _report(store: Store, wanted: ScalingConfig, cells: tuple[Cell, ...], notes: list[str], unique: int) -> Report:
    """Fit, advise, draw, and keep it as a run of its own."""
    from luthier.training.scaling_plot import draw

    name = wanted.name or "scaling"
    points = [
        Point(getattr(c, "parameters" if wanted.count == "all" else wanted.count), c.tokens, c.loss) for c in cells
    ]
    found, why = None, ""
    try:
        found = fit(points, bootstrap=wanted.bootstrap)
    except DataError as error:
        why = str(error)
    optima: tuple[Optimum, ...] = ()
    if found is not None and found.law == "parameters and tokens":
        largest = max(point.compute for point in points)
        optima = tuple(found.optimum(c) for c in wanted.budgets or (largest, 10 * largest, 100 * largest))
        notes += doubts(found)
    if unique and any(cell.tokens > 4 * unique for cell in cells):
        notes.append(
            f"some trainings read the {unique:,} different tokens of the data more than 4 times; the law is of new text"
        )
    key = digest_json(["scaling", name, [cell.run for cell in cells], wanted.model_dump(mode="json")])
    earlier = [run for run in runs.by_key(store, key) if run.status == "done"]
    values = wanted.model_dump(mode="json")
    run = earlier[0] if earlier else runs.start(store, "scaling", name, values, {}, key)
    plot = runs.folder(store, run.id) / PLOT
    report = Report(name, cells, found, optima, why, tuple(notes), str(plot), run.id, wanted.count)
    if cells:
        draw(report, plot)
    runs.finish(store, run.id, "done", {"report": report.as_dict()})
    return report


def doubts(found: Fit) -> list[str]:
    """What to be careful about in a fit."""
    out = []
    if found.error > 0.02:
        out.append(
            f"a run lies {found.error:.1%} from the law: a training may have gone wrong, or the sizes may need other learning rates"
        )
    for name in ("alpha", "beta"):
        if not 0.05 < found.constants[name] < 1.5:
            out.append(
                f"{name} = {found.constants[name]:.3g} is far from the 0.3 that is usual: the runs say little about it; spread them wider"
            )
    if found.constants["E"] < 0.05:
        out.append(
            "the loss that no model gets below (E) came out as nothing: the runs are too small to show it, so far budgets are guesses"
        )
    return out


def predict(store: Store, job: Job) -> Prediction:
    """What one training of the grid will take; a base that was made for the look is removed again."""
    from luthier.store.models import remove
    from luthier.training.preflight import look_ahead

    found = look_ahead(store, job)
    if job.made:
        remove(store, job.base.name)
    return found
