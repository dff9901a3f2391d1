"""The verb ``promote``: what was proved best becomes an endpoint, a name that answers exactly as it was evaluated."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from luthier.core.digest import digest_json
from luthier.core.errors import ConflictError, InputError, MismatchError, NotFoundError, UnsupportedError, did_you_mean
from luthier.core.model import ModelRecord
from luthier.core.run import Run
from luthier.core.task import PromptTemplate
from luthier.data.render import mismatch
from luthier.evaluation.records import read_records
from luthier.store.artifacts import path_of, verify
from luthier.store.database import Store, open_store
from luthier.store.lineage import Node, record_edge
from luthier.store.models import check_name, find, register
from luthier.store.runs import find_run, folder, list_runs
from luthier.tournament.board import Board, Standing
from luthier.tournament.certificate import standing_of

_PARITY_PROMPTS = 16


def promote(
    run: str = "latest",
    *,
    entrant: str | None = None,
    name: str | None = None,
    replace: bool = False,
    parity_check: bool = True,
    uncertified: bool = False,
    store: Store | None = None,
) -> ModelRecord:
    """Register an evaluated model as an endpoint and return its record.

    ``run`` is a tournament, whose verdict decides unless ``entrant`` names another, or a single evaluation; ``latest`` is the last
    finished tournament. ``name`` defaults to the task's. The record holds all that serving needs: target, strategy with its prompt and
    examples, labels, digests.

    Raises NotFoundError for an unknown run or entrant, StoreError when files of the model are damaged, MismatchError when weights
    or template are no longer those that were evaluated, or when prompts, stop tokens or loss mask differ between training and the
    engine that will serve (``parity_check=False`` leaves that comparison out, which the record then says), ConflictError when the name
    is taken (by another endpoint: ``replace``). An export whose certificate on this task says FAIL is a MismatchError too, unless
    ``uncertified``.
    """
    store = store or open_store()
    found = _latest(store) if run == "latest" else find_run(store, run)
    evaluated = _evaluation(store, found, entrant)
    config = json.loads((folder(store, evaluated.id) / "config.json").read_text(encoding="utf-8"))["values"]
    if str(config["model"]).startswith("kb:"):
        told = config["engine"].get("writer") or "MODEL"
        raise UnsupportedError(
            f"{config['model']} answers from a knowledge base, which is a name to ask already",
            hint=f"luthier kb set {str(config['model']).removeprefix('kb:')} answer.model={told}",
        )
    target = _target(store, config)
    _check(store, target, config["engine"])
    certificate = standing_of(target, config["task"], uncertified=uncertified) if target.kind == "export" else None
    record = _record(store, found, evaluated, config, target, check_name(name or config["task"]["name"]), entrant)
    parity = _parity(store, record, evaluated, config["engine"]) if parity_check else {"checked": False}
    record = dataclasses.replace(record, meta={**record.meta, "parity": parity})
    if certificate is not None:
        record = dataclasses.replace(record, meta={**record.meta, "certificate": certificate})
    _require_free(store, record, replace)
    record = register(store, record, replace=replace)
    endpoint = Node("endpoint", record.name)
    record_edge(store, Node("run", found.id), "promoted", endpoint)
    record_edge(store, Node("task", config["task"]["digest"], config["task"]["name"]), "answered by", endpoint)
    return record


def _latest(store: Store) -> Run:
    done = [run for run in list_runs(store, "tournament", limit=200) if run.status == "done"]
    if not done:
        raise NotFoundError("there is no finished tournament to promote from", hint="luthier tournament TASK.yaml")
    return max(done, key=lambda run: run.finished_at or "")


def _evaluation(store: Store, run: Run, entrant: str | None) -> Run:
    """The evaluation of the entrant that is promoted."""
    if run.kind == "eval":
        if entrant is not None:
            raise InputError(f"run {run.id} is a single evaluation; it has no entrant {entrant!r}")
        return _done(run)
    if run.kind != "tournament":
        raise InputError(
            f"run {run.id} is of kind {run.kind}; promote takes a tournament or an eval run", hint="luthier runs"
        )
    board = Board.load(folder(store, _done(run).id))
    wanted = entrant or str(board.verdict.get("keep", ""))
    standing: Standing | None = board.standing(wanted)
    if standing is None:
        raise NotFoundError(
            f"entrant {wanted!r} is not on the board. {did_you_mean(wanted, [s.name for s in board.standings])}"
        )
    if standing.status != "done":
        raise InputError(f"entrant {wanted!r} failed, so nothing is known of it: {standing.reason}")
    return _done(find_run(store, standing.eval_run))


def _done(run: Run) -> Run:
    if run.status != "done":
        raise InputError(
            f"run {run.id} is {run.status}; only a finished one proves anything",
            hint="finish it: the same command again",
        )
    return run


def _target(store: Store, config: Mapping[str, Any]) -> ModelRecord:
    """The stored model that was evaluated; an endpoint stands for what it points at."""
    name = str(config["model"])
    if name.partition(":")[0] in ("openai", "fake"):
        raise UnsupportedError(
            f"{name} is not in the store, so there is nothing to serve from here", hint="promote another entrant"
        )
    record = find(store, name)
    while record.kind == "endpoint":
        record = find(store, str(record.meta.get("target", "")))
    return record


def _check(store: Store, target: ModelRecord, evaluated: Mapping[str, Any]) -> None:
    """Raise unless weights and template are whole, and those that were evaluated."""
    verify(store, target.digest)
    if evaluated["model_digest"] and target.digest != evaluated["model_digest"]:
        raise MismatchError(
            f"{target.name} has changed since it was evaluated: digest {evaluated['model_digest'][:12]} then, {target.digest[:12]} now",
            hint="evaluate it again, or run the tournament again",
        )
    holder = target
    if target.kind == "adapter" and target.meta.get("saves") != "weights" and target.base is not None:
        holder = find(store, target.base)
        verify(store, holder.digest)
        if evaluated["base_digest"] and holder.digest != evaluated["base_digest"]:
            raise MismatchError(
                f"base {holder.name} has changed since {target.name} was evaluated on it: digest {evaluated['base_digest'][:12]} "
                f"then, {holder.digest[:12]} now",
                hint="pull the base that it was trained on, or run the tournament again",
            )
    if target.architecture != "encoder" and evaluated["template_digest"] and target.kind != "export":
        from luthier.models.load import load_renderer

        if target.meta.get("template_digest"):
            mismatch(str(target.meta["template_digest"]), evaluated["template_digest"], what=target.name)
        mismatch(
            evaluated["template_digest"],
            load_renderer(path_of(store, holder.digest)).digest,
            what=f"the evaluation of {target.name}",
        )


def _parity(store: Store, record: ModelRecord, evaluated: Run, engine: Mapping[str, Any]) -> dict[str, Any]:
    """Compare training with serving, on what was evaluated and on prompts that are hard to cut; returns what was compared.

    Raises MismatchError when anything that must be equal is not.
    """
    if record.architecture != "decoder":
        return {"checked": True, "prompts": 0, "compared": []}
    from luthier.evaluation.parity import check_identity, refuse_differences
    from luthier.evaluation.parity_prompts import built_in, from_records

    template = PromptTemplate.from_dict(dict(record.meta["prompt"])) if record.meta.get("prompt") else None
    cases = [*built_in(_PARITY_PROMPTS, template), *from_records(read_records(folder(store, evaluated.id)), template)]
    type_ = str(engine["options"].get("type", "F16")) if engine["name"] == "llamacpp" else None
    found = check_identity(store, find(store, str(record.meta["target"])), cases, llama_type=type_)
    refuse_differences(found, str(record.meta["target"]))
    compared = [f"{c.left} - {c.right}: {c.what}" for c in found]
    return {"checked": True, "prompts": len(cases), "compared": compared}


def _record(
    store: Store,
    run: Run,
    evaluated: Run,
    config: Mapping[str, Any],
    target: ModelRecord,
    name: str,
    entrant: str | None,
) -> ModelRecord:
    summary, task = evaluated.summary, config["task"]
    strategy = _strategy(store, config, target)
    score = summary["scores"][summary["primary"]]
    meta = {
        "target": target.name,
        "strategy": strategy,
        "prompt": (strategy or {}).get("config", {}).get("prompt"),
        "labels": list(task["labels"]),
        "max_new_tokens": task["max_new_tokens"],
        "context_length": target.meta.get("context_length"),
        "template_digest": config["engine"]["template_digest"],
        "prompt_digest": config["engine"]["prompt_digest"],
        "base_digest": config["engine"]["base_digest"],
        "engine": config["engine"]["name"],
        "engine_options": config["engine"]["options"],
        "task": {"name": task["name"], "digest": task["digest"]},
        "evaluated": {
            "run": evaluated.id,
            "task": task["name"],
            "scorer": summary["primary"],
            "examples": summary["counts"]["examples"],
            **{key: score[key] for key in ("value", "low", "high")},
        },
        "chosen_by": "verdict" if run.kind == "tournament" and entrant is None else "hand",
    }
    return ModelRecord(
        name=name,
        kind="endpoint",
        architecture=target.architecture,
        digest=target.digest,
        licence=target.licence,
        base=target.base or target.name,
        run_id=run.id,
        meta=json.loads(json.dumps(meta)),  # as the store gives it back: lists, not tuples
    )


def _strategy(store: Store, config: Mapping[str, Any], target: ModelRecord) -> dict[str, Any] | None:
    """How the endpoint is asked: the strategy of the evaluation; where a model was asked in its own way, that way spelled out."""
    used = config["strategy"]
    if used["name"] != "own":
        return {"name": used["name"], "config": used["config"]}
    asked = find(store, str(config["model"]))
    if asked.kind == "endpoint":
        own = asked.meta.get("strategy")
        return dict(own) if own else None
    prompt = target.meta.get("prompt")
    if target.architecture == "encoder" or not prompt:
        return None
    return {"name": "zero_shot", "config": {"prompt": PromptTemplate.from_dict(dict(prompt)).as_dict()}}


def _require_free(store: Store, record: ModelRecord, replace: bool) -> None:
    try:
        taken = find(store, record.name)
    except NotFoundError:
        return
    if taken.kind != "endpoint":
        raise ConflictError(
            f"the name {record.name!r} is taken by a model of kind {taken.kind}", hint="choose another: --as NAME"
        )
    same = [(r.digest, r.meta.get("target"), digest_json(r.meta.get("strategy"))) for r in (taken, record)]
    if same[0] != same[1] and not replace:
        raise ConflictError(
            f"the endpoint {record.name!r} exists and serves {taken.meta.get('target')}, asked another way or another model",
            hint="let it serve the new one: --replace, or choose another name: --as NAME",
        )
