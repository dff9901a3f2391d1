"""A base and a model as one engine: what is shown, cited, counted and streamed, in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from luthier.core.document import Chunk, Hit
from luthier.core.engine import (
    SCORE,
    Constraint,
    Engine,
    Generation,
    Sampling,
    ScoreRequest,
    UnsupportedError,
)
from luthier.core.errors import InputError, NotFoundError
from luthier.core.message import Image, Message, user
from luthier.engines.fake import Config, FakeEngine
from luthier.knowledge.index import Filter
from luthier.knowledge.prompt import NOT_FOUND, rag_prompt
from luthier.knowledge.rag import RagEngine, open_rag, rag

FRANCE = "Paris is the capital of France. It lies on the Seine."
CHINA = "请假须提前三天申请。年假每年十五天。"


class Shelf:
    """Passages, found when they share a word with the question, or a character in Chinese; remembers what it was asked."""

    name = "shelf"

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.asked: list[dict[str, Any]] = []

    def search(
        self,
        question: str,
        k: int = 5,
        where: Filter | None = None,
        *,
        retrieval: Sequence[Mapping[str, Any]] | None = None,
        history: Sequence[str] = (),
        reranker: Engine | None = None,
        notes: list[dict[str, Any]] | None = None,
    ) -> list[Hit]:
        self.asked.append({"question": question, "k": k, "where": where, "retrieval": retrieval, "history": history})
        words = set(question.lower().split()) | {each for each in question if each > "\u3000"}
        found = [(sum(word in text.lower() for word in words), n, text) for n, text in enumerate(self.texts)]
        best = sorted((each for each in found if each[0]), key=lambda each: (-each[0], each[1]))[:k]
        return [
            Hit(
                Chunk(f"c{n}", text, n, (n, n), pages=(n + 1, n + 1)),
                f"doc_{n}",
                f"file{n}.pdf",
                score=score,
                scores={"keyword": score},
            )
            for score, n, text in best
        ]


def engine(answers: Mapping[str, str] | None = None, **more: Any) -> FakeEngine:
    return FakeEngine("fake", Config(answers=dict(answers or {}), **more))


def asked_of(made: RagEngine, prompt: Any, **sampling: Any) -> Generation:
    (answer,) = made.generate([prompt], Sampling(**sampling))
    return answer


def test_an_answer_says_what_it_was_shown_and_what_it_rests_on() -> None:
    made = rag(
        Shelf(FRANCE, "Bread is baked."), engine({"capital of France": "Paris is the capital [1]. Not this [7]."})
    )
    answer = asked_of(made, user("What is the capital of France?"))
    assert answer.text == "Paris is the capital [1]. Not this."
    assert [hit.chunk.id for hit in answer.hits] == ["c0", "c1"]
    (citation,) = answer.citations
    assert (citation.number, citation.hit.source, citation.quote) == (1, "file0.pdf", "Paris is the capital of France.")
    assert answer.calls == 1
    assert answer.steps[0]["step"] == "retrieve" and answer.steps[0]["found"] == ["c0", "c1"]


def test_a_question_in_chinese_is_asked_and_cited_in_chinese() -> None:
    made = rag(Shelf("公司食堂每天开放。", CHINA), engine({"年假": "年假每年十五天【1】。"}))
    answer = asked_of(made, user("年假有几天?"))
    assert answer.text == "年假每年十五天[1]。"
    assert answer.citations[0].quote == "年假每年十五天。"
    assert answer.citations[0].hit.chunk.text == CHINA


@pytest.mark.parametrize(("question", "language"), [("Quantum chromodynamics", "en"), ("量子色动力学是谁提出", "zh")])
def test_nothing_found_is_said_without_asking_the_model(question: str, language: str) -> None:
    answer = asked_of(rag(Shelf("A."), engine(fail={"": "must not be asked"})), user(question))
    assert answer.text == NOT_FOUND[language]
    assert (answer.calls, answer.hits, answer.citations, answer.finish_reason) == (0, (), (), "stop")


def test_a_model_that_finds_nothing_cites_nothing() -> None:
    made = rag(Shelf(FRANCE), engine({"France": "This is not in the documents. [1]"}))
    answer = asked_of(made, user("Who rules in France today"))
    assert answer.citations == ()
    assert len(answer.hits) == 1


def test_an_answer_without_marks_is_attributed_and_the_steps_say_so() -> None:
    answer = asked_of(
        rag(Shelf("Bread is baked.", FRANCE), engine({"France": "Paris is the capital."})), user("France")
    )
    assert [(each.number, each.quote) for each in answer.citations] == [(1, "Paris is the capital of France.")]
    assert answer.steps[-1] == {"step": "attribute", "passages": [1]}


def test_passages_below_the_least_score_are_not_shown() -> None:
    shelf = Shelf(FRANCE, "The cat sleeps.")
    made = rag(shelf, engine({"capital": "Paris [1][2]"}), least={"keyword": 3})
    answer = asked_of(made, user("the capital of France"))
    assert [hit.chunk.id for hit in answer.hits] == ["c0"]
    assert answer.text == "Paris [1]"
    assert answer.steps[0]["below_least"] == 1


def test_a_score_that_no_step_gives_is_refused() -> None:
    with pytest.raises(InputError, match="least names the score rerank; the steps of this search give: keyword"):
        asked_of(rag(Shelf(FRANCE), engine(), least={"rerank": 0.5}), user("France"))


def test_earlier_turns_go_to_the_search_and_to_the_prompt() -> None:
    shelf = Shelf(FRANCE)
    seen: list[Any] = []

    class Keeping(FakeEngine):
        def generate(self, prompts: Any, *args: Any, **more: Any) -> list[Generation]:
            seen.extend(prompts)
            return super().generate(prompts, *args, **more)

    made = rag(shelf, Keeping("fake", Config()))
    turns = (
        Message("system", "Be brief."),
        Message("user", "Tell me of France."),
        Message("assistant", "What of it?"),
        Message("user", "Its capital"),
    )
    asked_of(made, turns)
    (asked,) = shelf.asked
    assert asked["history"] == ("Tell me of France.", "What of it?")
    assert asked["retrieval"][0] == {"name": "rewrite"}
    (prompt,) = seen
    assert prompt[:3] == turns[:3]
    assert FRANCE in prompt[3].content and prompt[3].content.endswith("Question: Its capital")


def test_a_stream_is_the_answer_of_generate() -> None:
    made = rag(Shelf(FRANCE), engine({"France": "It is Paris [1] [9], see `a[3]` [1, 2]."}))
    deltas = list(made.stream(user("France"), Sampling()))
    whole = asked_of(made, user("France"))
    assert "".join(delta.text for delta in deltas) == whole.text == "It is Paris [1], see `a[3]` [1]."
    last = deltas[-1].generation
    assert last is not None and last.citations == whole.citations and last.text == whole.text


def test_a_reader_who_leaves_stops_the_model() -> None:
    ended: list[bool] = []

    class Watched(FakeEngine):
        def stream(self, prompt: Any, sampling: Sampling) -> Any:
            try:
                yield from super().stream(prompt, sampling)
            finally:
                ended.append(True)

    made = rag(Shelf(FRANCE), Watched("fake", Config(answers={"France": "one two three four"})))
    deltas = made.stream(user("France"), Sampling())
    while not next(deltas).text:
        assert not ended
    deltas.close()  # type: ignore[attr-defined]
    assert ended == [True]


def test_what_is_asked_of_a_batch_is_one_batch() -> None:
    batches: list[int] = []

    class Counting(FakeEngine):
        def generate(self, prompts: Any, *args: Any, **more: Any) -> list[Generation]:
            batches.append(len(prompts))
            return super().generate(prompts, *args, **more)

    made = rag(Shelf(FRANCE, CHINA), Counting("fake", Config(answers={"France": "a [1]", "年假": "b [1]"})))
    answers = made.generate([user("France"), user("nothing known"), user("年假")], Sampling())
    assert [answer.text for answer in answers] == ["a [1]", NOT_FOUND["en"], "b [1]"]
    assert batches == [2]


def test_scores_are_those_after_the_retrieved_prompt() -> None:
    made, inner = rag(Shelf(FRANCE), engine()), engine()
    found = Shelf(FRANCE).search("capital of France")
    (scores,) = made.score([ScoreRequest(user("capital of France"), ("Paris", "London"))])
    (alone,) = inner.score([ScoreRequest(rag_prompt("capital of France", found), ("Paris", "London"))])
    assert scores == alone
    assert SCORE in made.info.capabilities


def test_sampling_goes_through_and_pictures_stay_where_they_were() -> None:
    made = rag(Shelf(FRANCE), engine())
    answer = asked_of(made, user("France"), constraint=Constraint("choice", '["yes"]'), max_new_tokens=5)
    assert answer.text == "yes"
    assert asked_of(made, user("France"), max_new_tokens=2).finish_reason == "length"
    seen = (Message("user", "What of France is this", images=(Image("https://a/b.png", at=4),)),)
    assert asked_of(made, seen).text.startswith("1 image:")


def test_what_it_is() -> None:
    made = rag(Shelf(FRANCE), engine(), k=3)
    info = made.info
    assert info.model == "kb:shelf"
    assert dict(info.meta)["writer"] == "fake"
    assert "logprobs" not in info.parameters and "embed" not in info.capabilities
    assert info.prompt_digest != rag(Shelf(FRANCE), engine(), k=4).info.prompt_digest
    with pytest.raises(UnsupportedError, match="cannot embed"):
        made.embed(["a"])


def test_a_view_searches_within_its_filter_and_leaves_the_engine_open() -> None:
    shelf = Shelf(FRANCE)
    made = rag(shelf, engine())
    view = made.within(Filter(labels=("sales",)))
    asked_of(view, user("France"))
    asked_of(made, user("France"))
    assert [each["where"] for each in shelf.asked] == [Filter(labels=("sales",)), None]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"k": 0}, "k must be 1 to"),
        ({"mode": "stuf"}, "answer 'stuf' is not known. Did you mean 'stuff'"),
        ({"options": {"ordr": "x"}}, "ordr"),
        ({"retrieval": [{"name": "dens"}]}, "dens"),
    ],
)
def test_wrong_options_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, NotFoundError), match=message):
        rag(Shelf(), engine(), **more)


def test_a_question_is_needed() -> None:
    with pytest.raises(InputError, match="user turn"):
        asked_of(rag(Shelf(FRANCE), engine()), (Message("system", "x"),))


def test_an_unknown_base_and_one_without_a_model(home: Any) -> None:
    from luthier.knowledge.base import create_base

    with pytest.raises(NotFoundError, match="knowledge base 'nothing'"):
        open_rag("kb:nothing")
    create_base("shop", embedder="fake").close()
    with pytest.raises(InputError, match="which model writes"):
        open_rag("kb:shop")


def test_a_base_opens_as_it_is_recorded(home: Any, tmp_path: Any) -> None:
    from luthier.knowledge.base import create_base

    (tmp_path / "a.txt").write_text(FRANCE)
    with create_base("shop", embedder="fake", answer={"model": "fake:Paris [1]", "k": 2, "order": "edges"}) as base:
        base.add([tmp_path / "a.txt"])
    made = open_rag("kb:shop")
    try:
        answer = asked_of(made, user("What is the capital of France?"))
        assert answer.text == "Paris [1]"
        assert answer.citations[0].hit.source.endswith("a.txt")
        assert made.k == 2 and made.version() == 1
    finally:
        made.close()


def test_kb_is_a_name_wherever_a_model_has_one(home: Any, tmp_path: Any) -> None:
    from luthier.core.errors import InputError
    from luthier.knowledge.base import create_base
    from luthier.strategies._load import load

    (tmp_path / "a.txt").write_text(FRANCE)
    with create_base("shop", embedder="fake", answer={"model": "fake:Paris [1]"}) as base:
        base.add([tmp_path / "a.txt"])
    made = load("kb:shop", options={"k": 1, "mode": "map_rerank", "most_passages": 2})
    try:
        assert isinstance(made, RagEngine)
        assert (made.k, made.mode, made.info.model) == (1, "map_rerank", "kb:shop")
    finally:
        made.close()
    with pytest.raises(NotFoundError, match="knowledge base 'nothing'"):
        load("kb:nothing")
    with pytest.raises(InputError, match="kb:shop is a knowledge base"):
        load("kb:shop", options={"model": "kb:shop"})
    with pytest.raises(NotFoundError, match="model 'other:shop'"):
        load("other:shop")


def test_a_step_whose_model_failed_is_in_the_answers_steps() -> None:
    class Failing(Shelf):
        def search(self, *args: Any, notes: Any = None, **options: Any) -> list[Hit]:
            notes += [{"step": "rewrite", "failed": "the model is gone"}, {"step": "hyde", "written": "text"}]
            return super().search(*args, **options)

    answer = asked_of(rag(Failing("a violin has strings"), engine()), "what has a violin")
    retrieve = next(step for step in answer.steps if step["step"] == "retrieve")
    assert retrieve["left_out"] == {"rewrite": "the model is gone"}
    plain = asked_of(rag(Shelf("a violin has strings"), engine()), "what has a violin")
    assert all("left_out" not in step for step in plain.steps)
