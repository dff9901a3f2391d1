"""What is special to one way of answering."""

from __future__ import annotations

import math
from typing import Any

import pytest

from luthier.core.engine import Generation, Sampling, TokenLogprob
from luthier.core.errors import EngineError
from luthier.core.message import user
from luthier.knowledge.answers._judge import chances, judged
from luthier.knowledge.answers._talk import ordered
from luthier.knowledge.prompt import NOT_FOUND
from luthier.knowledge.rag import rag


def test_orders() -> None:
    hits: Any = list("abcde")  # best first
    assert ordered(hits, "best_first") == list("abcde")
    assert ordered(hits, "best_last") == list("edcba")
    assert ordered(hits, "edges") == list("acedb")


def test_the_order_of_passages_is_that_of_their_numbers(asking: Any, scripted: Any) -> None:
    model = scripted(lambda text, sampling: "So it is [2].")
    answer = asking(model, ["alpha one", "beta two", "gamma three"], "What?", mode="stuff", order="best_last")
    assert [hit.chunk.id for hit in answer.hits] == ["c2", "c1", "c0"]
    assert answer.citations[0].hit.chunk.id == "c1"
    assert model.prompts[0].index("gamma") < model.prompts[0].index("beta") < model.prompts[0].index("alpha")


def test_an_instruction_of_ones_own(scripted: Any, shelf: Any) -> None:
    model = scripted(lambda text, sampling: "ok")
    rag(shelf("a"), model, options={"instruction": "Talk like a pirate, or say {not_found}"}).generate(
        [user("Q?")], Sampling()
    )
    assert model.prompts[0].startswith(f"Talk like a pirate, or say {NOT_FOUND['en']}\n\n<passages>")


def test_refine_numbers_passages_through_and_shows_the_answer_so_far(asking: Any, scripted: Any) -> None:
    said = iter(["Red [1].", "Red and blue [1] [2].", "Red, blue, green [1-3]."] * 2)
    model = scripted(lambda text, sampling: next(said))
    answer = asking(model, ["It is red.", "It is blue.", "It is green."], "Which colours?", mode="refine", at_once=1)
    assert answer.text == "Red, blue, green [1, 2, 3]."
    assert [citation.quote for citation in answer.citations] == ["It is red.", "It is blue.", "It is green."]
    assert answer.calls == 3
    second, third = model.prompts[1:3]
    assert '<passage number="2"' in second and "<draft>\nRed [1].\n</draft>" in second and "It is red." not in second
    assert '<passage number="3"' in third and "<draft>\nRed and blue [1] [2].\n</draft>" in third


def test_refine_starts_over_when_nothing_was_there_before(asking: Any, scripted: Any) -> None:
    said = iter([NOT_FOUND["en"], "Blue [2]."] * 2)
    model = scripted(lambda text, sampling: next(said))
    answer = asking(model, ["Unrelated.", "It is blue."], "Which colour?", mode="refine", at_once=1)
    assert "<draft>" not in model.prompts[1]
    assert answer.citations[0].number == 2


def test_map_reduce_cites_the_passages_that_its_notes_are_of(asking: Any, scripted: Any) -> None:
    def script(text: str, sampling: Sampling) -> str:
        if "Write down" not in text:
            return "Two rivers [1] [2]."
        return "Seine [1]" if "Seine" in text else "Rhine" if "Rhine" in text else NOT_FOUND["en"]

    model = scripted(script)
    passages = ["The Seine is a river in France.", "Bread is baked in the morning.", "The Rhine flows to the sea."]
    answer = asking(model, passages, "Which rivers?", mode="map_reduce")
    assert model.batches[0] == 3
    reduce = model.prompts[3]
    assert "\nSeine\n" in reduce and "\nRhine\n" in reduce and "Bread" not in reduce
    assert [citation.hit.chunk.text for citation in answer.citations] == [passages[0], passages[2]]
    assert answer.calls == 4


def test_map_rerank_gives_the_best_rated_answer(asking: Any) -> None:
    def script(text: str, sampling: Sampling) -> str:
        if sampling.constraint:
            return "5" if "seven" in text else "2"
        return "seven [1]" if "seven" in text else "four [1]"

    answer = asking(script, ["It has four legs.", "It has seven legs."], "How many legs?", mode="map_rerank")
    assert answer.text == "seven [1]"
    assert [hit.chunk.id for hit in answer.hits] == ["c1"]
    assert answer.steps[-1]["ratings"] == {"c0": 2.0, "c1": 5.0}


def test_map_rerank_refuses_below_the_least_rating_and_survives_one_failure(
    asking: Any, scripted: Any, shelf: Any
) -> None:
    answer = asking(
        lambda text, sampling: "2" if sampling.constraint else "x [1]",
        ["a b c"],
        "Q?",
        mode="map_rerank",
        least_rating=3.0,
    )
    assert answer.text == NOT_FOUND["en"]

    def failing(text: str, sampling: Sampling) -> str:
        if "broken" in text:
            raise EngineError("no")
        return "4" if sampling.constraint else "fine [1]"

    made = rag(shelf("broken", "whole"), scripted(failing), mode="map_rerank")
    assert made.generate([user("Q?")], Sampling())[0].text == "fine [1]"


def test_chances_are_shares_of_the_tokens_that_choices_begin_with() -> None:
    top = ((b"Yes", math.log(0.6)), (b" yes", math.log(0.1)), (b"n", math.log(0.2)), (b"maybe", math.log(0.1)))
    made = Generation("Yes", (1,), (), "stop", tokens=(TokenLogprob(b"Yes", math.log(0.6), top),))
    assert chances(made, ("yes", "no")) == pytest.approx({"yes": 0.7 / 0.9, "no": 0.2 / 0.9})


@pytest.mark.parametrize(
    ("text", "found"),
    [("No.", (0, 1)), ("I say yes, not no", (1, 0)), ("nobody knows", (0.5, 0.5)), ("", (0.5, 0.5))],
)
def test_chances_of_what_was_only_said(text: str, found: tuple[float, float]) -> None:
    assert tuple(chances(Generation(text, (), (), "stop"), ("yes", "no")).values()) == found


def test_engines_without_constraints_are_asked_plainly(scripted: Any) -> None:
    info = scripted(lambda *a: "").info
    assert judged(user("x"), ("a", "b"), info.with_(parameters=frozenset())).sampling.constraint is None
    assert judged(user("x"), ("a", "b"), info).sampling.logprobs == 20


def test_self_rag_scores_as_the_paper_does(scripted: Any, shelf: Any) -> None:
    """Equations 3 and 4 worked out by hand, from the probabilities that the model gives its judgements."""
    shares = {
        "help to answer this well": {"yes": 0.9, "no": 0.1},
        "alpha</": {},
        "hold something": {"yes": 0.8, "no": 0.2},
        "supported by the passage": {"fully": 0.5, "partially": 0.3, "none": 0.2},
        "How useful": {"1": 0.1, "3": 0.2, "5": 0.7},
    }
    said = {"help to": "yes", "hold something": "yes", "supported": "fully", "How useful": "5"}

    def script(text: str, sampling: Sampling) -> str:
        return next((each for piece, each in said.items() if piece in text), "alpha [1]")

    made = rag(shelf("alpha"), scripted(script, chances=shares), mode="self_rag", options={"usefulness_weight": 0.5})
    (answer,) = made.generate([user("Q?")], Sampling())
    critique = answer.steps[-1]
    expected = math.exp(-0.5) + 1.0 * 0.8 + 1.0 * (0.5 + 0.5 * 0.3) + 0.5 * (0.1 * -1.0 + 0.2 * 0.0 + 0.7 * 1.0)
    assert critique["scores"] == {"c0": pytest.approx(expected, abs=1e-4)}
    assert answer.calls == 5 and answer.tokens == ()


def test_self_rag_answers_without_a_search_when_none_is_needed(scripted: Any, shelf: Any) -> None:
    found = shelf("alpha")
    model = scripted(lambda text, sampling: "Hello!", chances={"help to answer": {"no": 0.9, "yes": 0.1}})
    (answer,) = rag(found, model, mode="self_rag").generate([user("Good morning")], Sampling())
    assert (answer.text, answer.hits, answer.calls, found.asked) == ("Hello!", (), 2, [])
    rag(found, model, mode="self_rag", options={"retrieve": "always"}).generate([user("Good morning")], Sampling())
    assert found.asked == ["Good morning"]


def test_self_rag_refuses_what_no_passage_supports_unless_it_is_told_to_keep_it(asking: Any) -> None:
    def script(text: str, sampling: Sampling) -> str:
        value = sampling.constraint.value if sampling.constraint else ""
        return "none" if "fully" in value else "5" if "5" in value else "yes" if value else "Made up [1]."

    assert asking(script, ["alpha"], "Q?", mode="self_rag").text == NOT_FOUND["en"]
    assert asking(script, ["alpha"], "Q?", mode="self_rag", unsupported="keep").text == "Made up [1]."


def test_long_histories_lose_their_oldest_turns_first(scripted: Any, shelf: Any) -> None:
    from luthier.core.message import Message

    model = scripted(lambda text, sampling: "fine [1]", context_length=300)
    turns = [Message("system", "Be kind.")]
    for number in range(8):
        turns += [Message("user", f"question{number} " * 10), Message("assistant", f"reply{number} " * 10)]
    kept: list[Any] = []
    generate = model.generate

    def keeping(prompts: Any, sampling: Sampling, *more: Any) -> Any:
        kept.extend(prompts)
        return generate(prompts, sampling, *more)

    model.generate = keeping
    made = rag(shelf("the passage"), model, rewrite=False)
    (answer,) = made.generate([(*turns, Message("user", "And now?"))], Sampling(max_new_tokens=50))
    (prompt,) = kept
    assert answer.text == "fine [1]"
    assert prompt[0].content == "Be kind." and prompt[1].role == "user"
    assert "reply7" in prompt[-2].content and "question0" not in str(prompt)
    assert sum(step.get("turns", 0) for step in answer.steps if step["step"] == "forget") == 17 - (len(prompt) - 1)
