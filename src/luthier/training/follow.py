"""The other processes of ``luthier tune``: each loads the same model and rows and takes its part of every micro-batch (``training.processes``).

python -m luthier.training.follow RUN_FOLDER/processes.json
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.config import Document, from_mapping, read_yaml
from luthier.core.errors import InputError, MismatchError, UnsupportedError
from luthier.core.run import no_progress

if TYPE_CHECKING:
    from luthier.store.database import Store
    from luthier.training.resolve import Job


Followed = Callable[..., AbstractContextManager[None]]
"""Given the store, the run's folder and what the others must know: while entered, other processes take their part of the training."""


def followed(
    job: Job, config: str | Path | Mapping[str, Any] | Document | None, overrides: tuple[str, ...]
) -> Followed | None:
    """What starts the other processes of ``train.processes``; None for one process. Raises UnsupportedError where a training cannot be shared, InputError for
    shards of one."""
    asked = job.config.train.processes
    if asked == 1:
        return None
    from luthier.training.processes import followers, wanted

    shards = job.config.train.shard == "on"
    count = wanted(asked, job.config.train.device)
    if count == 1:
        if shards:
            raise InputError(
                f"train.shard=on is for more than one process; train.processes={asked} is one here",
                hint="train.shard=off, or a number of processes: train.processes=2",
            )
        return None
    objective, hint = job.objective.entry, "train.processes=1"
    if config is None:
        raise UnsupportedError(
            "train.processes is for trainings that a configuration describes; splits or a prompt came from Python",
            hint="name the files in data: " + hint,
        )
    if objective.optional("WHOLE_STEPS") or objective.optional("rollout") is not None:
        raise UnsupportedError(
            f"objective {objective.name} looks at all rows of a step together, which several processes cannot",
            hint=hint,
        )
    if shards:
        from luthier.training.shard import require_shardable

        require_shardable(job)
    if isinstance(config, Mapping):
        config = from_mapping(config)
    stated = config if isinstance(config, Document) else read_yaml(config)

    def start(store: Store, folder: Path, **told: Any) -> AbstractContextManager[None]:
        asked = {"values": stated.values, "folder": str(stated.folder.resolve()), "overrides": overrides, **told}
        asked |= {"home": str(store.home.root), "key": job.key}
        place = folder / "processes.json"
        place.write_text(json.dumps(asked), encoding="utf-8")
        return followers(count, folder, [str(place)])

    return start


def follow(asked: dict[str, Any]) -> None:
    """Train beside the leader. Raises MismatchError when data or models are no longer what the leader has."""
    from luthier.models.checkpointing import checkpointed
    from luthier.models.fast import speed_up
    from luthier.store import runs
    from luthier.store.database import open_store
    from luthier.training import checkpoint
    from luthier.training.loop import train
    from luthier.training.prepare import prepare
    from luthier.training.processes import own_gpu
    from luthier.training.resolve import resolve
    from luthier.training.shard import sharded
    from luthier.training.work import mean_loss

    own_gpu()
    store = open_store(Path(asked["home"]))
    stated = Document(asked["values"], folder=Path(asked["folder"]))
    job = resolve(stated, asked["overrides"], store)
    if job.key != asked["key"]:
        raise MismatchError("the data, the models or the configuration changed while the training was starting")
    folder = runs.folder(store, asked["run"])
    prepared = prepare(store, job, no_progress, None)
    model, around = prepared.model, job.method.entry.optional("steps")
    speed_up(model.module)
    with ExitStack() as stack:
        if asked["checkpointing"]:
            stack.enter_context(checkpointed(model.module))
        config, shards = job.config.train, None
        validate: Callable[[], Mapping[str, float]] | None = None
        if asked["validates"]:
            validate = dict  # the leader validates
        if config.shard == "on":
            shards = stack.enter_context(sharded(model, config.device))
            if asked["validates"]:
                assert prepared.validation is not None
                validate = partial(mean_loss, prepared.validation, max_tokens=config.max_tokens_per_batch)
        train(
            model.module,
            prepared.training,
            config,
            folder=folder,
            metrics=lambda record: None,
            validate=validate,
            resume=checkpoint.latest(folder),
            steps=around(model, job.method.config) if around is not None else None,
            shards=shards,
        )


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process of a terminal; the leader alone decides what follows
    follow(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
