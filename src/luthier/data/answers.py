"""A dataset of a model's own answers: what one model says, for another to learn (sequence-level distillation; Kim and Rush 2016).

Of several answers to each prompt the one with the highest reward is kept: rejection sampling (Touvron et al. 2023, Llama 2, section 3.2.3),
RAFT (Dong et al. 2023). Best and worst as a pair are data for dpo (Yuan et al.
2024, Self-rewarding language models).

It asks any engine, so that teacher and student need not have a tokenizer in common. The file is the state: rows are added as they come,
and a call that is made again goes on after the last whole one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from luthier.core.dataset import Dataset
from luthier.core.digest import digest_json
from luthier.core.engine import GENERATE, Engine, Generation, Sampling, require
from luthier.core.errors import ConflictError, InputError
from luthier.core.message import Conversation, Message, last_user_text
from luthier.core.run import Progress, no_progress
from luthier.core.score import Reward, Rewarding, Target, asked_of
from luthier.store.home import disk_errors

if TYPE_CHECKING:
    from luthier.store.database import Store

BLOCK = 16
"""Prompts that are asked at once: what an interruption can lose."""

Keep = Literal["best", "pair"]


@dataclass(frozen=True)
class Answered:
    """``rows`` in the file, of them ``earlier`` there before; ``cut`` answers did not end within the tokens allowed and ``empty`` ones said
    nothing: neither is written. Of the prompts of this call that got an answer, ``mean_reward`` is the mean over all their answers, ``best_reward`` over the best of each;
    ``refused`` of them had none that was good enough, or no two that differ."""

    path: Path
    rows: int
    earlier: int
    cut: int
    empty: int
    refused: int = 0
    mean_reward: float | None = None
    best_reward: float | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """One prompt, and what a good answer to it is."""

    key: str
    prompt: Conversation
    target: Target


def answers(
    prompts: Dataset,
    engine: Engine,
    path: str | Path,
    *,
    sampling: Sampling | None = None,
    system: str = "",
    samples: int = 1,
    rewards: Rewarding | None = None,
    keep: Keep = "best",
    least: float | None = None,
    rationale: bool = False,
    store: Store | None = None,
    progress: Progress = no_progress,
) -> Answered:
    """Ask ``engine`` for an answer to every prompt and write conversations to ``path`` (JSON Lines of kind chat), in the order of the prompts.

    A conversation is asked without its last answers. ``system`` begins those that have no system turn. Each row says which prompt
    (``prompt_id``), model, digest, engine and sampling it is of. Equal prompts are asked once.

    With ``rewards`` (``luthier.rewards([...])``), ``samples`` answers are drawn to each prompt, sample k with the seed ``seed * samples + k``, and ``keep`` says what
    is written: ``best``, the one with the highest reward (of equals the first), or ``pair``, preference rows of best and worst where their rewards differ. Rows
    carry their rewards. Prompts whose best reward is below ``least`` are left out. ``store`` records in the lineage what the file came from.

    ``rationale``: rows of question, answer and rationale, which is what an engine that thinks first (a strategy such as chain_of_thought) wrote on the
    way; for objective step_by_step.

    Raises UnsupportedError for an engine that cannot write, InputError for settings that do not fit together, DataError for rows without a user
    turn, ConflictError where ``path`` holds other rows, StoreError when the disk refuses.
    """
    require(engine, GENERATE)
    path, sampling = Path(path), sampling or Sampling()
    _check(sampling, samples, rewards, keep, least)
    asked = _prompts(prompts, system)
    made_by = _provenance(engine, sampling)
    if rationale:
        _check_rationales(rewards, asked)
    if rewards is not None:
        made_by["best_of"] = {"samples": samples, "rewards": list(rewards.spec), "keep": keep, "least": least}
    done = _there(path, made_by)
    left = [one for one in asked if one.key not in done]
    tally = _Tally(len(asked) - len(left))
    progress("answers", tally.earlier, len(asked))
    with _appending(path) as file:
        for start in range(0, len(left), BLOCK):
            block = left[start : start + BLOCK]
            drawn = _drawn(engine, block, sampling, samples)
            if rationale:
                _require_thought(engine, drawn)
            chosen = (
                _first(block, drawn, rationale)
                if rewards is None
                else _rewarded(block, drawn, rewards, keep, least, tally)
            )
            tally.count(drawn)
            for one, row in zip(block, chosen, strict=True):
                if row is not None:
                    file.write(json.dumps({**row, "prompt_id": one.key, **made_by}, ensure_ascii=False) + "\n")
                    tally.rows += 1
            file.flush()
            os.fsync(file.fileno())
            progress("answers", tally.earlier + start + len(block), len(asked))
    if store is not None and tally.earlier + tally.rows:
        _record(store, prompts, made_by, path)
    return tally.told(path)


def _check(sampling: Sampling, samples: int, rewards: Rewarding | None, keep: str, least: float | None) -> None:
    if samples < 1:
        raise InputError(f"samples must be >= 1; got {samples}")
    if rewards is None and (samples > 1 or least is not None or keep != "best"):
        raise InputError(
            "samples, keep and least choose among answers by rewards; got none",
            hint="for example --reward exact, or rewards=luthier.rewards([{'name': 'exact'}])",
        )
    if keep not in ("best", "pair"):
        raise InputError(f"keep must be best or pair; got {keep!r}")
    if samples > 1 and sampling.temperature == 0:
        raise InputError(f"{samples} samples need temperature above 0, or all are the same answer; got 0")
    if keep == "pair" and samples < 2:
        raise InputError(f"keep pair needs samples >= 2; got {samples}")


class _Tally:
    """Counts for ``Answered``."""

    def __init__(self, earlier: int) -> None:
        self.earlier, self.rows, self.cut, self.empty, self.refused = earlier, 0, 0, 0, 0
        self.means: list[float] = []
        self.bests: list[float] = []

    def count(self, drawn: Sequence[Sequence[Generation]]) -> None:
        """Answers that cannot be used."""
        every = [one for group in drawn for one in group]
        self.cut += sum(one.finish_reason == "length" for one in every)
        self.empty += sum(one.finish_reason != "length" and not one.text.strip() for one in every)

    def told(self, path: Path) -> Answered:
        """What the caller is told."""
        mean, best = (sum(v) / len(v) if v else None for v in (self.means, self.bests))
        return Answered(path, self.earlier + self.rows, self.earlier, self.cut, self.empty, self.refused, mean, best)


def _drawn(engine: Engine, block: Sequence[_Asked], sampling: Sampling, samples: int) -> list[list[Generation]]:
    """``samples`` answers to each prompt."""
    columns = []
    for number in range(samples):
        seed = None if sampling.seed is None else (sampling.seed * samples + number) % 2**63
        columns.append(engine.generate([one.prompt for one in block], replace(sampling, seed=seed)))
    return [list(group) for group in zip(*columns, strict=True)]


def _usable(one: Generation) -> bool:
    return one.finish_reason != "length" and bool(one.text.strip())


def _first(
    block: Sequence[_Asked], drawn: Sequence[Sequence[Generation]], rationale: bool
) -> list[dict[str, Any] | None]:
    def row(one: _Asked, said: Generation) -> dict[str, Any]:
        if not rationale:
            return {"messages": _rows((*one.prompt, Message("assistant", said.text)))}
        thought = {"rationale": said.reasoning} if said.reasoning.strip() else {}
        return {"question": last_user_text(one.prompt), "answer": said.text, **thought}

    return [row(one, group[0]) if _usable(group[0]) else None for one, group in zip(block, drawn, strict=True)]


def _check_rationales(rewards: Rewarding | None, asked: Sequence[_Asked]) -> None:
    if rewards is not None:
        raise InputError("rationale and rewards exclude each other: a rewarded row is a conversation")
    if any([message.role for message in one.prompt] != ["user"] for one in asked):
        raise InputError(
            "rationale makes rows of one question each; these prompts have a system turn or several turns",
            hint="a strategy brings its own instruction: --strategy '{name: zero_shot_cot, prompt: {instruction: ...}}'",
        )


def _require_thought(engine: Engine, drawn: Sequence[Sequence[Generation]]) -> None:
    if not any(one.reasoning.strip() for group in drawn for one in group):
        raise InputError(
            f"{engine.info.model} answers at once, and leaves no reasoning to write down",
            hint="ask it with a strategy that thinks first: --strategy zero_shot_cot",
        )


def _rewarded(
    block: Sequence[_Asked],
    drawn: Sequence[Sequence[Generation]],
    rewards: Rewarding,
    keep: Keep,
    least: float | None,
    tally: _Tally,
) -> list[dict[str, Any] | None]:
    """A row for each prompt, or None. All answers of the block are rewarded together."""
    texts = [[one.text for one in group if _usable(one)] for group in drawn]
    flat = [(one, text) for one, group in zip(block, texts, strict=True) for text in group]
    given = iter(rewards([one.prompt for one, _ in flat], [one.target for one, _ in flat], [text for _, text in flat]))
    out: list[dict[str, Any] | None] = []
    for one, group in zip(block, texts, strict=True):
        valued = [(next(given), text) for text in group]
        row = _chosen(one, valued, keep, least)
        if valued:
            totals = [reward.total for reward, _ in valued]
            tally.means.append(sum(totals) / len(totals))
            tally.bests.append(max(totals))
            tally.refused += row is None
        out.append(row)
    return out


def _chosen(
    one: _Asked, valued: Sequence[tuple[Reward, str]], keep: Keep, least: float | None
) -> dict[str, Any] | None:
    if not valued:
        return None
    places = range(len(valued))
    best = max(places, key=lambda i: (valued[i][0].total, -i))
    reward, text = valued[best]
    if least is not None and reward.total < least:
        return None
    said = {"reward": reward.total, "reward_parts": dict(reward.parts), "of": len(valued)}
    if keep == "best":
        return {"messages": _rows((*one.prompt, Message("assistant", text))), **said}
    low, other = valued[min(places, key=lambda i: (valued[i][0].total, i))]
    if low.total == reward.total:
        return None
    sides = {name: _rows((Message("assistant", each),)) for name, each in (("chosen", text), ("rejected", other))}
    return {"prompt": _rows(one.prompt), **sides, **said, "reward_rejected": low.total}


def _prompts(dataset: Dataset, system: str) -> list[_Asked]:
    """What is asked, each prompt once."""
    found: dict[str, _Asked] = {}
    for example in dataset.examples:
        prompt, target = asked_of(example)
        if system and prompt[0].role != "system":
            prompt = (Message("system", system), *prompt)
        key = digest_json(_rows(prompt))[:16]
        found.setdefault(key, _Asked(key, prompt, target))
    return list(found.values())


def _rows(messages: Conversation) -> list[dict[str, Any]]:
    return [message.as_dict() for message in messages]


def _provenance(engine: Engine, sampling: Sampling) -> dict[str, Any]:
    info = engine.info
    drawn = {key: value for key, value in asdict(sampling).items() if value not in (None, ())}
    return {"answered_by": info.model, "model_digest": info.model_digest, "engine": info.engine, "sampling": drawn} | (
        {"prompt_digest": info.prompt_digest} if info.prompt_digest else {}
    )


def _there(path: Path, made_by: Mapping[str, Any]) -> set[str]:
    """Prompts that were answered before. The half line of an interrupted write is taken off the file."""
    if not path.exists():
        return set()
    with disk_errors(path):
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data):
            with path.open("r+b") as file:
                file.truncate(len(whole))
    found = set()
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            same = {key: row[key] for key in made_by} == json.loads(json.dumps(made_by))
            found.add(str(row["prompt_id"]))
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise ConflictError(
                f"{path}:{number}: is not an answer of {made_by['answered_by']} with these settings, so that nothing is added to the file",
                hint="choose another file: --out OTHER.jsonl",
            )
    return found


@contextmanager
def _appending(path: Path) -> Iterator[TextIO]:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            yield file


def _record(store: Store, prompts: Dataset, made_by: Mapping[str, Any], path: Path) -> None:
    """Lineage: prompts and model, and reward models, gave the dataset."""
    from luthier.data.read import read
    from luthier.store.lineage import Node, record_edge

    made = read(path)
    node = Node("dataset", made.digest, made.name)
    record_edge(store, Node("dataset", prompts.digest, prompts.name), "asked in", node)
    record_edge(store, Node("model", made_by["answered_by"]), "answered", node)
    for part in made_by.get("best_of", {}).get("rewards", ()):
        if "model" in part and "name" not in part:
            record_edge(store, Node("model", part["model"]), "rewarded", node)
