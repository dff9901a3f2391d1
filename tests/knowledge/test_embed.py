"""Texts into vectors: the cache, prompts, engines that fail midway or change."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from luthier.core.engine import Vectors
from luthier.core.errors import DataError, EngineError, MismatchError, StoreError, UnsupportedError
from luthier.core.run import Progress, no_progress
from luthier.engines.fake import Config, FakeEngine
from luthier.knowledge.embed import Embedder, Prompts, read_prompts


class Counted(FakeEngine):
    """A fake engine that notes what it embeds and asks ``trouble`` before."""

    def __init__(self, width: int = 16, trouble: Callable[[int], None] | None = None, name: str = "fake") -> None:
        super().__init__(name, Config(width=width))
        self.calls: list[list[str]] = []
        self.trouble = trouble

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        if self.trouble is not None:
            self.trouble(len(self.calls))
        self.calls.append(list(texts))
        return super().embed(texts, progress)

    @property
    def asked(self) -> list[str]:
        return [text for call in self.calls for text in call]


def failing(times: Sequence[int], *, retryable: bool = True, wait_s: float | None = None) -> Callable[[int], None]:
    """Fails at these attempts."""
    attempts = iter(range(10_000))

    def trouble(_: int) -> None:
        if next(attempts) in times:
            raise EngineError("overloaded", retryable=retryable, retry_after_s=wait_s)

    return trouble


def test_each_text_is_embedded_once(tmp_path: Path) -> None:
    engine = Counted()
    one = Embedder(engine, tmp_path / "vectors.db")
    first = one.embed(["red", "blue", "red"])
    assert engine.asked == ["red", "blue"]
    assert np.array_equal(first[0], first[2])
    two = Embedder(Counted(), tmp_path / "vectors.db")
    again = two.embed(["blue", "green", "red"])
    assert two.engine.asked == ["green"]  # type: ignore[attr-defined]
    assert np.allclose(again, Counted().embed(["blue", "green", "red"]), atol=1e-3)
    assert np.allclose(np.linalg.norm(again, axis=1), 1.0, atol=1e-6)
    assert again.dtype == np.float32 and one.embed([]).shape == (0, 16)


def test_other_weights_have_other_vectors(tmp_path: Path) -> None:
    Embedder(Counted(name="fake"), tmp_path / "vectors.db").embed(["red"])
    other = Counted(name="fake:another")
    Embedder(other, tmp_path / "vectors.db").embed(["red"])
    assert other.asked == ["red"]


def test_without_a_cache_and_after_close(tmp_path: Path) -> None:
    engine = Counted()
    plain = Embedder(engine)
    plain.embed(["red"])
    plain.embed(["red"])
    assert engine.asked == ["red", "red"]
    cached = Embedder(engine, tmp_path / "vectors.db")
    cached.close()
    cached.close()
    assert cached.embed(["red"]).shape == (1, 16)


def test_progress_counts_what_was_cached(tmp_path: Path) -> None:
    embedder = Embedder(Counted(), tmp_path / "vectors.db")
    embedder.embed([f"t{n}" for n in range(600)])
    seen: list[tuple[str, int, int]] = []
    embedder.embed([f"t{n}" for n in range(1500)], lambda *said: seen.append(said))
    assert seen == [("embed", 1112, 1500), ("embed", 1500, 1500)]


def test_questions_and_passages_have_their_prompts(tmp_path: Path) -> None:
    engine = Counted()
    embedder = Embedder(engine, tmp_path / "vectors.db", prompts=Prompts("query: ", "passage: "))
    passage, question = embedder.embed(["red car"])[0], embedder.embed_queries(["red car"])[0]
    assert engine.asked == ["passage: red car", "query: red car"]
    assert not np.allclose(passage, question)
    embedder.embed_queries(["red car"])
    assert engine.asked.count("query: red car") == 2  # questions are not kept
    assert Embedder(engine, tmp_path / "vectors.db").embed(["red car"]).shape == (1, 16)
    assert engine.asked[-1] == "red car"  # without a prompt it is another text
    assert embedder.embed_queries([]).shape == (0, 16)


@pytest.mark.parametrize(
    ("stated", "want"),
    [
        ({}, Prompts()),
        ({"prompts": {}, "default_prompt_name": None}, Prompts()),
        ({"prompts": {"query": "query: ", "passage": "passage: "}}, Prompts("query: ", "passage: ")),
        ({"prompts": {"query": "Q: ", "document": "", "corpus": "c"}}, Prompts("Q: ", "")),
        ({"prompts": {"query": "为这个句子生成表示:"}}, Prompts("为这个句子生成表示:", "")),
        ({"prompts": {"web": "W ", "document": "D "}, "default_prompt_name": "web"}, Prompts("W ", "D ")),
    ],
)
def test_prompts_of_a_model(tmp_path: Path, stated: dict[str, object], want: Prompts) -> None:
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(stated), encoding="utf-8")
    assert read_prompts(tmp_path) == want


def test_prompts_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    assert read_prompts(None) == read_prompts(tmp_path) == Prompts()
    for text in ("{", '{"prompts": [1]}', "[]"):
        (tmp_path / "config_sentence_transformers.json").write_text(text)
        with pytest.raises(DataError, match="config_sentence_transformers"):
            read_prompts(tmp_path)


def test_an_engine_that_fails_for_a_moment_is_asked_again_in_small_parts(tmp_path: Path) -> None:
    waited: list[float] = []
    engine = Counted(trouble=failing([0, 2], wait_s=7.0))
    embedder = Embedder(engine, tmp_path / "vectors.db", wait=waited.append)
    texts = [f"text {n}" for n in range(200)]
    found = embedder.embed(texts)
    assert np.allclose(found, Counted().embed(texts), atol=1e-6)
    assert [len(call) for call in engine.calls] == [64, 64, 64, 8]
    assert waited == [7.0, 7.0]


def test_what_was_embedded_before_an_engine_fails_for_good_is_kept(tmp_path: Path) -> None:
    waited: list[float] = []
    engine = Counted(trouble=failing([0, *range(3, 100)]))
    embedder = Embedder(engine, tmp_path / "vectors.db", wait=waited.append)
    texts = [f"text {n}" for n in range(200)]
    with pytest.raises(EngineError, match="overloaded"):
        embedder.embed(texts)
    assert len(engine.asked) == 128 and waited == [1.0, 1.0, 4.0]
    well = Counted()
    Embedder(well, tmp_path / "vectors.db").embed(texts)
    assert well.asked == texts[128:]


def test_an_engine_that_refuses_is_not_asked_again(tmp_path: Path) -> None:
    waited: list[float] = []
    embedder = Embedder(Counted(trouble=failing([0], retryable=False)), tmp_path / "v.db", wait=waited.append)
    with pytest.raises(EngineError):
        embedder.embed(["a"])
    assert waited == []


def test_vectors_of_another_width_than_before(tmp_path: Path) -> None:
    Embedder(Counted(16, name="same"), tmp_path / "vectors.db").embed(["red"])

    class Changed(Counted):
        """The name means another model now, and nobody says so."""

        @property
        def info(self):  # type: ignore[no-untyped-def]
            return super().info.with_(model_digest="")

    embedder = Embedder(Changed(8), tmp_path / "vectors.db", width=16)
    with pytest.raises(MismatchError, match="8 dimensions now; it gave 16") as error:
        embedder.embed(["blue"])
    assert "kb rebuild" in str(error.value)
    with pytest.raises(MismatchError):
        embedder.embed_queries(["blue"])


@pytest.mark.parametrize("given", [np.zeros((3, 4)), np.zeros(4), np.full((1, 4), np.nan), np.zeros((1, 0))])
def test_what_is_no_answer(given: Vectors) -> None:
    class Broken(Counted):
        def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
            return given

    with pytest.raises(EngineError, match="gave vectors"):
        Embedder(Broken()).embed(["a"])


def test_an_engine_that_does_not_embed() -> None:
    class Mute(Counted):
        @property
        def info(self):  # type: ignore[no-untyped-def]
            return super().info.with_(capabilities=frozenset({"generate"}))

    with pytest.raises(UnsupportedError):
        Embedder(Mute())


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "vectors.db"
    path.write_bytes(b"this is no database" * 100)
    engine = Counted()
    Embedder(engine, path).embed(["red"])
    Embedder(engine, path).embed(["red"])
    assert engine.asked == ["red"]


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "vectors.db").mkdir()
    with pytest.raises(StoreError, match="cache of vectors"):
        Embedder(Counted(), tmp_path / "vectors.db")


def test_a_full_disk(tmp_path: Path) -> None:
    embedder = Embedder(Counted(512), tmp_path / "vectors.db")
    assert embedder._cache is not None
    embedder._cache.execute("PRAGMA max_page_count = 10")
    with pytest.raises(StoreError, match="full"):
        embedder.embed([f"text {n}" for n in range(500)])


def test_two_processes_share_the_cache(tmp_path: Path) -> None:
    one, two = Counted(), Counted()
    first, second = Embedder(one, tmp_path / "v.db"), Embedder(two, tmp_path / "v.db")
    first.embed(["a", "b"])
    second.embed(["b", "c"])
    first.embed(["c"])
    assert (one.asked, two.asked) == (["a", "b"], ["c"])
    rows = sqlite3.connect(tmp_path / "v.db").execute("SELECT count(*) FROM vectors").fetchone()
    assert rows == (3,)
