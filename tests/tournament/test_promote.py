from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import luthier
from luthier.core.errors import (
    ConflictError,
    InputError,
    LuthierError,
    MismatchError,
    NotFoundError,
    StoreError,
    UnsupportedError,
)
from luthier.core.message import user
from luthier.evaluation.evaluate import evaluate
from luthier.models.pull import pull
from luthier.store.artifacts import path_of
from luthier.store.database import Store, open_store
from luthier.store.lineage import lineage
from luthier.store.models import find, register
from luthier.store.runs import folder, list_runs
from luthier.strategies._load import load
from luthier.tournament.board import Board
from luthier.tournament.promote import promote
from luthier.tournament.tournament import tournament

LABELS = ("billing", "delivery", "refund")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, tiny_decoder_path: Path, tiny_encoder_path: Path) -> Path:
    """A folder with a task and a home in which its tournament was played, once for all tests of this file."""
    place = tmp_path_factory.mktemp("played")
    store = open_store(place / "home")
    pull(f"file:{tiny_decoder_path}", alias="tiny-decoder", store=store)
    pull(f"file:{tiny_encoder_path}", alias="tiny-encoder", store=store)
    draw = np.random.default_rng(0)
    rows = [{"text": f"row {i} about {LABELS[int(draw.integers(3))]}", "label": LABELS[i % 3]} for i in range(60)]
    (place / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (place / "task.yaml").write_text(
        "name: sorting\ndata: {path: rows.jsonl}\nmax_new_tokens: 5\ntrain: {max_steps: 2, dtype: fp32}\n"
        "models: {decoder: tiny-decoder, encoder: tiny-encoder}\nentrants: [few_shot, lora, linear_probe]\n"
    )
    tournament(place / "task.yaml", store=store)
    store.engine.dispose()
    return place


@pytest.fixture
def store(home: Path, played: Path) -> Store:
    """A copy of that home."""
    shutil.copytree(played / "home", home)
    return open_store()


@pytest.fixture
def path(played: Path, tmp_path: Path) -> Path:
    """A copy of the task."""
    for name in ("rows.jsonl", "task.yaml"):
        shutil.copy(played / name, tmp_path / name)
    return tmp_path / "task.yaml"


@pytest.fixture
def board(store: Store) -> Board:
    """The tournament's board."""
    return Board.load(folder(store, list_runs(store, "tournament")[0].id))


def test_the_verdicts_choice_becomes_an_endpoint(board: Board, store: Store) -> None:
    record = promote(store=store)
    kept = board.standing(board.verdict["keep"])
    assert kept is not None
    assert (record.name, record.kind, record.meta["target"]) == ("sorting", "endpoint", kept.target)
    assert record.meta["chosen_by"] == "verdict"
    assert record.meta["labels"] == list(LABELS)
    assert record.meta["max_new_tokens"] == 5
    assert record.meta["evaluated"]["value"] == pytest.approx(kept.score["value"])
    assert record.digest == find(store, kept.target).digest
    assert promote(store=store).meta == record.meta, "promoting again changes nothing"
    graph = lineage("sorting", store).as_dict()
    into = {(e["source"]["kind"], e["relation"]) for e in graph["edges"] if e["target"]["id"] == "sorting"}
    assert {("run", "promoted"), ("task", "answered by")} <= into
    assert ("model", "served as") in into


@pytest.mark.parametrize("entrant", ["few_shot", "lora", "linear_probe"])
def test_an_endpoint_answers_exactly_as_it_was_evaluated(board: Board, store: Store, path: Path, entrant: str) -> None:
    """Self-contained: it needs neither the task file nor its data, examples of few_shot included."""
    record = promote(entrant=entrant, name="served", store=store)
    (path.parent / "rows.jsonl").unlink()
    standing = board.standing(entrant)
    assert standing is not None
    engine = load("served", store=store)
    assert engine.info.prompt_digest == standing.digests.get("prompt", "")
    assert engine.info.model_digest == standing.digests["model"]
    assert engine.info.template_digest == standing.digests.get("template", "")
    from luthier.core.engine import ScoreRequest
    from luthier.evaluation.records import read_records

    evaluated = read_records(folder(store, standing.eval_run))[:5]
    scored = engine.score([ScoreRequest(user(r.input), LABELS) for r in evaluated])
    for r, row in zip(evaluated, scored, strict=True):
        # 0.05 nats: the tiny models answer in bf16 where the CPU has it, and another batch rounds otherwise
        assert [s.logprob for s in row] == pytest.approx([r.logprobs[label] for label in LABELS], abs=0.05)
    engine.close()
    assert record.meta["chosen_by"] == "hand"
    if entrant == "few_shot":
        assert len(record.meta["strategy"]["config"]["examples"]) == 3
    elif entrant == "lora":
        assert record.meta["strategy"]["name"] == "zero_shot"
        assert record.meta["prompt"]["labels"] == list(LABELS)
    else:
        assert record.meta["strategy"] is None


def test_an_evaluation_can_be_promoted_by_itself_and_an_endpoint_again(board: Board, path: Path, store: Store) -> None:
    result = evaluate("tiny-decoder", path, store=store, strategy={"name": "few_shot", "shots": 2})
    record = promote(result.run.id, name="by-hand", store=store)
    assert len(record.meta["strategy"]["config"]["examples"]) == 2
    again = promote(evaluate("by-hand", path, store=store).run.id, name="again", store=store)
    assert again.meta["target"] == "tiny-decoder"
    assert again.meta["strategy"] == record.meta["strategy"]


def test_a_taken_name_is_not_taken_away(board: Board, store: Store) -> None:
    promote(entrant="lora", store=store)
    with pytest.raises(ConflictError, match="--replace"):
        promote(entrant="linear_probe", store=store)
    assert promote(entrant="linear_probe", replace=True, store=store).meta["strategy"] is None
    for replace_it in (False, True):
        with pytest.raises(ConflictError, match="taken by a model of kind base"):
            promote(entrant="lora", name="tiny-encoder", replace=replace_it, store=store)
    with pytest.raises(InputError, match="model name"):
        promote(entrant="lora", name="not a name", store=store)


def _damage(store: Store, digest: str) -> None:
    file = next(p for p in sorted(path_of(store, digest).iterdir()) if p.name.endswith(".safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damaged", ["adapter", "base"])
def test_damaged_weights_are_refused(board: Board, store: Store, damaged: str) -> None:
    lora = board.standing("lora")
    assert lora is not None
    _damage(store, find(store, lora.target if damaged == "adapter" else "tiny-decoder").digest)
    with pytest.raises(StoreError, match=r"damaged.*sha256"):
        promote(entrant="lora", store=store)
    with pytest.raises(NotFoundError):
        find(store, "sorting")


def test_weights_or_template_that_changed_since_are_refused(board: Board, store: Store) -> None:
    lora, probe = board.standing("lora"), board.standing("linear_probe")
    assert lora is not None and probe is not None
    record, base = find(store, lora.target), find(store, "tiny-decoder")
    for kept in (record, base):  # so that their files stay when their names move on
        register(store, replace(kept, name=f"{kept.name}-kept"))
    register(store, replace(record, digest=find(store, probe.target).digest), replace=True)
    with pytest.raises(MismatchError, match="has changed since it was evaluated"):
        promote(entrant="lora", store=store)
    register(store, replace(record, meta={**record.meta, "template_digest": "f" * 64}), replace=True)
    with pytest.raises(MismatchError, match="template digest"):
        promote(entrant="lora", store=store)
    register(store, record, replace=True)
    register(store, replace(base, digest=find(store, "tiny-encoder").digest), replace=True)
    with pytest.raises(LuthierError, match="tiny-decoder has changed since"):
        promote(entrant="lora", store=store)


def test_a_template_that_renders_otherwise_now_is_refused(
    board: Board, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.models import load as loading

    real = loading.load_renderer

    def other(folder: Path, tokenizer: object = None):  # type: ignore[no-untyped-def]
        renderer = real(folder, tokenizer)
        renderer.digest = "0" * 64
        return renderer

    monkeypatch.setattr(loading, "load_renderer", other)
    with pytest.raises(MismatchError, match="template digest"):
        promote(entrant="few_shot", store=store)


def test_without_a_tournament_there_is_nothing_to_promote(home: Path) -> None:
    with pytest.raises(NotFoundError, match="no finished tournament"):
        luthier.promote()


def test_what_cannot_be_promoted(path: Path, store: Store) -> None:
    fake = evaluate("fake", path, store=store)
    with pytest.raises(UnsupportedError, match="not in the store"):
        promote(fake.run.id, store=store)
    with pytest.raises(InputError, match="single evaluation"):
        promote(fake.run.id, entrant="x", store=store)
    with pytest.raises(NotFoundError):
        promote("no-such-run", store=store)
    board = tournament(path, ["entrants=[lora, {name: lost, model: 'fake:a,b'}]"], store=store)
    with pytest.raises(NotFoundError, match="Did you mean 'lora'"):
        promote(entrant="loora", store=store)
    with pytest.raises(InputError, match="entrant 'lost' failed"):
        promote(entrant="lost", store=store)
    tuned = next(r for r in list_runs(store) if r.kind == "tune")
    with pytest.raises(InputError, match="is of kind tune"):
        promote(tuned.id, store=store)
    assert luthier.promote(board.run).name == "sorting"


def test_a_loss_mask_that_is_not_what_serving_asks_for_is_refused(
    board: Board, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renderer whose training rows begin their mask a token early, as a template that changes in a later release does."""
    from luthier.data.render import Rendered, Renderer

    real = Renderer.training_ids_batch

    def early(self: Renderer, rows: object, tools: object = None) -> list[Rendered]:
        out = real(self, rows, tools)  # type: ignore[arg-type]
        return [replace(r, mask=[*r.mask[1:], False]) for r in out]

    assert promote(entrant="lora", name="whole", store=store).meta["parity"]["checked"]
    monkeypatch.setattr(Renderer, "training_ids_batch", early)
    with pytest.raises(MismatchError, match="loss mask: renderer against training, prompt 1") as caught:
        promote(entrant="lora", name="broken", store=store)
    assert "--no-parity-check" in str(caught.value) and "luthier check parity" in str(caught.value)
    with pytest.raises(NotFoundError):
        find(store, "broken")
    record = promote(entrant="lora", name="broken", parity_check=False, store=store)
    assert record.meta["parity"] == {"checked": False}, "whoever looks can see it"
    assert promote(entrant="few_shot", name="untrained", store=store).meta["parity"]["compared"] == []
    assert promote(entrant="linear_probe", name="probe", store=store).meta["parity"]["prompts"] == 0
