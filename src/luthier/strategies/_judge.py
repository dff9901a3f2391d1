"""An engine as judge: grades answers by a rubric, or says which of two is better (Zheng et al., 2023, "LLM-as-a-Judge").

A pair is shown in both orders, and a judge that contradicts itself in writing has said "tie". A reply that cannot be read is asked for again
with another seed; what stays unreadable, fails or times out is None and counted, and never stops the others. An engine that can
score but hardly writes is asked for probabilities instead: a grade is then their mean over the scale (G-Eval, Liu et al., 2023), a preference the likeliest one over both orders together.
"""

from __future__ import annotations

import json
import math
import queue
import re
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar

from luthier.core.engine import GENERATE, SCORE, Engine, Sampling, ScoreRequest, require
from luthier.core.errors import EngineError, InputError
from luthier.core.message import Conversation
from luthier.core.run import no_progress
from luthier.core.task import PromptTemplate
from luthier.data.prompts import load_prompt
from luthier.engines._concurrent import run_all
from luthier.strategies._judge_reply import Side, read_grade, read_preference

if TYPE_CHECKING:
    from luthier.store.database import Store

Winner = Literal["first", "second", "tie"]
Mode = Literal["write", "score"]
Log = Callable[[Mapping[str, Any]], None]
Value = TypeVar("Value")

DEFAULT_RUBRIC = "rubric_quality"
RETRY_TEMPERATURE = 0.7
_BLOCK = 32
_WORKERS = 8
_GIVE_UP = 16
"""Questions that fail one after the other before the rest is not asked any more."""
_MOST_GRADES = 101
_SHARES = "probabilities"
_CATALOGUE_NAME = re.compile(r"[a-z0-9_.@-]+")


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked, and a right answer where one is known."""

    input: str
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Grade:
    """``value`` is on the rubric's scale, None when no attempt could be read; ``reply`` is the last one in full."""

    value: float | None
    reason: str
    reply: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Preference:
    """Which answer is better. ``forward`` is what was said of (first, second), ``backward`` of (second, first), both in the true
    order, None where unreadable or not asked. ``winner`` is None unless every order that was asked could be read; when the orders
    disagree it is a tie, or in mode score what is likeliest over both."""

    winner: Winner | None
    forward: Winner | None
    backward: Winner | None
    reason: str
    attempts: int

    @property
    def consistent(self) -> bool:
        """Whether all orders that were asked say the same."""
        return self.winner is not None and self.forward == self.winner and self.backward in (None, self.winner)


class Agreement(TypedDict):
    """``kappa`` and ``accuracy`` over the ``n`` items that the judge could be read on; None where they are not defined."""

    kappa: float | None
    accuracy: float | None
    n: int
    unparsable: int


@dataclass(frozen=True, slots=True)
class _Reply:
    text: str = ""
    reasoning: str = ""
    error: str = ""
    failure: Literal["", "failed", "timed_out", "not_asked"] = ""
    again: bool = True


@dataclass(slots=True)
class _Verdict(Generic[Value]):
    value: Value | None = None
    reason: str = ""
    reply: str = ""
    attempts: int = 0
    final: bool = False


def nothing(record: Mapping[str, Any]) -> None:
    """A log that keeps nothing."""


class Judge:
    """``engine`` as judge. ``rubric`` is a text, or the name of one in the prompt catalogue. ``counts`` adds up what happened: replies asked for, of these retried, failed and timed_out; not_asked; and
    unparsable, the verdicts that are missing in the end.

    ``mode`` write reads what the engine writes; score takes the probabilities of the possible verdicts (deterministic, one forward
    a question). ``retries`` are further attempts at an unreadable or failed reply, drawn with seeds 1, 2, ... at temperature 0.7
    after a greedy one. ``timeout_s`` bounds each reply: questions are then asked one by one, eight at once (None: the engine's own
    limits hold and it batches as it likes). ``log`` gets a record of every single reply, with its prompt.

    Raises UnsupportedError when the engine cannot do what ``mode`` needs, NotFoundError for an unknown rubric, InputError for a scale without extent or, in mode score,
    of more than 101 whole numbers.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        rubric: str = DEFAULT_RUBRIC,
        scale: tuple[float, float] = (1, 10),
        retries: int = 2,
        mode: Mode = "write",
        max_new_tokens: int = 256,
        timeout_s: float | None = None,
        log: Log = nothing,
        store: Store | None = None,
    ) -> None:
        require(engine, SCORE if mode == "score" else GENERATE)
        low, high = scale
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(f"scale must be two numbers, the smaller first; got {low:g}, {high:g}")
        self._grades = list(range(math.ceil(low), math.floor(high) + 1)) if high - low < _MOST_GRADES else []
        if mode == "score" and len(self._grades) < 2:
            raise InputError(f"mode score needs a scale of 2 to {_MOST_GRADES} whole numbers; got {low:g} to {high:g}")
        if _CATALOGUE_NAME.fullmatch(rubric):
            rubric = load_prompt(rubric, store).fill()
        self._engine, self._rubric, self._scale = engine, rubric.strip(), (float(low), float(high))
        kind = "_score" if mode == "score" else ""
        self._grading = self._filled(f"judge_grade{kind}", store)
        self._comparing = self._filled(f"judge_compare{kind}", store)
        self._retries, self._mode, self._max_new_tokens = retries, mode, max_new_tokens
        self._timeout_s, self._log = timeout_s, log
        self._failures = 0
        self.counts: Counter[str] = Counter()

    @property
    def name(self) -> str:
        """The judging model's name."""
        return self._engine.info.model

    def grade(self, items: Sequence[tuple[Question, str]]) -> list[Grade]:
        """The grade of each (question, answer), in order. Never raises for a single item."""
        asked = [
            self._messages(self._grading, {"question": q.input, "reference": q.reference, "answer": answer})
            for q, answer in items
        ]
        options = tuple(str(grade) for grade in self._grades)
        about = [{"kind": "grade", "input": q.input, "answer": answer} for q, answer in items]
        verdicts = self._settle(asked, about, options, lambda text: read_grade(text, self._scale))
        return [Grade(v.value, v.reason, v.reply, v.attempts) for v in verdicts]

    def compare(self, items: Sequence[tuple[Question, str, str]], *, swap: bool = True) -> list[Preference]:
        """Which answer of each (question, first, second) is better, in order; with ``swap`` asked in both orders.

        Never raises for a single item.
        """
        asked, about = [], []
        for q, first, second in items:
            for order, a, b in (("forward", first, second), ("backward", second, first))[: 1 + swap]:
                shown = {"question": q.input, "reference": q.reference, "answer_a": a, "answer_b": b}
                asked.append(self._messages(self._comparing, shown))
                about.append({"kind": "compare", "order": order, "input": q.input, "a": a, "b": b})
        verdicts: list[_Verdict[Side]] = self._settle(asked, about, ("A", "B", "tie"), read_preference)
        step = 1 + swap  # verdicts an item
        weighed = self._mode == "score"
        return [_preference(verdicts[i : i + step], weighed) for i in range(0, len(verdicts), step)]

    # ---- prompts

    def _filled(self, name: str, store: Store | None) -> PromptTemplate:
        prompt = load_prompt(name, store)
        low, high = (f"{end:g}" for end in self._scale)
        values = {"rubric": self._rubric, "low": low, "high": high}
        return prompt.template_for(**{place: values[place] for place in values if place in prompt.placeholders})

    def _messages(self, template: PromptTemplate, shown: Mapping[str, str]) -> Conversation:
        parts = [f"<{tag}>\n{content}\n</{tag}>" for tag, content in shown.items() if content or tag != "reference"]
        return template.messages("\n\n".join(parts))

    # ---- asking

    def _settle(
        self,
        asked: Sequence[Conversation],
        about: Sequence[Mapping[str, Any]],
        options: tuple[str, ...],
        read: Callable[[str], tuple[Value | None, str]],
    ) -> list[_Verdict[Value]]:
        """A verdict for each question: asked again until it can be read or the attempts are used up."""
        self._failures = min(self._failures, _GIVE_UP - 1)  # a judge that had given up gets one more chance
        verdicts: list[_Verdict[Value]] = [_Verdict() for _ in asked]
        for attempt in range(self._retries + 1):
            left = [i for i, verdict in enumerate(verdicts) if not verdict.final]
            for start in range(0, len(left), _BLOCK):
                block = left[start : start + _BLOCK]
                replies = self._replies([asked[i] for i in block], options, attempt)
                for i, reply in zip(block, replies, strict=True):
                    self._count(reply, attempt)
                    self._take(verdicts[i], reply, read)
                    self._record(asked[i], about[i], verdicts[i], reply, attempt)
        self.counts["unparsable"] += sum(verdict.value is None for verdict in verdicts)
        return verdicts

    def _take(self, verdict: _Verdict[Value], reply: _Reply, read: Callable[[str], tuple[Value | None, str]]) -> None:
        verdict.attempts += reply.failure != "not_asked"
        if reply.failure:
            verdict.reason, verdict.reply, verdict.final = reply.error, "", not reply.again
            return
        verdict.value, reason = read(reply.text)
        verdict.reason = reason or reply.text
        verdict.reply = reply.text
        # probabilities come out the same however often they are asked for
        verdict.final = verdict.value is not None or self._mode == "score"

    def _replies(self, prompts: list[Conversation], options: tuple[str, ...], attempt: int) -> list[_Reply]:
        """One reply a prompt: together where the engine takes them, else one by one, so that a failure is one item's own."""
        if self._timeout_s is None and self._failures == 0:
            try:
                return self._call(prompts, options, attempt)
            except (EngineError, OSError, InputError) as error:
                if not _blames_an_item(error):
                    raise
        return run_all(
            lambda prompt: self._one(prompt, options, attempt),
            prompts,
            workers=_WORKERS,
            stage="judge",
            progress=no_progress,
        )

    def _one(self, prompt: Conversation, options: tuple[str, ...], attempt: int) -> _Reply:
        if self._failures >= _GIVE_UP:
            why = f"not asked: {self.name} failed {self._failures} times in a row"
            return _Reply(error=why, failure="not_asked", again=False)
        try:
            reply = _within(self._timeout_s, lambda: self._call([prompt], options, attempt)[0], self.name)
        except (EngineError, OSError, InputError) as error:
            if not _blames_an_item(error):
                raise
            refused = isinstance(error, InputError)  # would be refused again
            self._failures += not refused
            failure: Literal["timed_out", "failed"] = "timed_out" if isinstance(error, TimeoutError) else "failed"
            return _Reply(error=str(error) or type(error).__name__, failure=failure, again=not refused)
        self._failures = 0
        return reply

    def _count(self, reply: _Reply, attempt: int) -> None:
        if reply.failure != "not_asked":
            self.counts["asked"] += 1
            self.counts["retried"] += attempt > 0
        if reply.failure:
            self.counts[reply.failure] += 1

    def _call(self, prompts: Sequence[Conversation], options: tuple[str, ...], attempt: int) -> list[_Reply]:
        if self._mode == "score":
            scored = self._engine.score([ScoreRequest(prompt, options) for prompt in prompts])
            return [_weighed(options, [one.logprob for one in row]) for row in scored]
        sampling = Sampling(
            max_new_tokens=self._max_new_tokens, temperature=RETRY_TEMPERATURE if attempt else 0.0, seed=attempt
        )
        made = self._engine.generate(prompts, sampling)
        return [_Reply(one.text, one.reasoning) for one in made]

    def _record(
        self, asked: Conversation, about: Mapping[str, Any], verdict: _Verdict[Value], reply: _Reply, attempt: int
    ) -> None:
        record: dict[str, Any] = {
            **about,
            "judge": self.name,
            "mode": self._mode,
            "attempt": attempt,
            "prompt": [message.as_dict() for message in asked],
            "reply": reply.text,
            "value": verdict.value,
        }
        if reply.reasoning:
            record["reasoning"] = reply.reasoning
        if reply.error:
            record["error"] = reply.error
        self._log(record)


def _blames_an_item(error: Exception) -> bool:
    """False for errors that no other question would escape: a model that is not there, an engine that cannot do this."""
    return not isinstance(error, InputError) or type(error) is InputError


def _weighed(options: Sequence[str], logprobs: Sequence[float]) -> _Reply:
    """The verdict that probabilities give, written as the JSON that a judge would write."""
    best = max(logprobs, default=math.nan)
    if not math.isfinite(best) or any(math.isnan(value) for value in logprobs):
        return _Reply(error="a log-probability is not a number", failure="failed", again=False)
    weights = [math.exp(value - best) for value in logprobs]
    shares = {option: weight / sum(weights) for option, weight in zip(options, weights, strict=True)}
    if set(options) == {"A", "B", "tie"}:
        said: dict[str, Any] = {"winner": max(shares, key=shares.__getitem__)}
    else:
        said = {"rating": sum(float(option) * share for option, share in shares.items())}
    return _Reply(json.dumps(said | {_SHARES: shares}))


def _within(timeout_s: float | None, call: Callable[[], _Reply], name: str) -> _Reply:
    """``call()``, or TimeoutError after ``timeout_s``; the thread of a call that never ends is left behind and ends with the process."""
    if timeout_s is None:
        return call()
    box: queue.SimpleQueue[tuple[_Reply | None, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            box.put((call(), None))
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            box.put((None, error))

    threading.Thread(target=work, daemon=True, name="luthier-judge-reply").start()
    try:
        reply, error = box.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"{name} did not reply within {timeout_s:g} s") from None
    if reply is None:
        assert error is not None
        raise error
    return reply


_FORWARD: Mapping[Side, Winner] = {"A": "first", "B": "second", "tie": "tie"}
_BACKWARD: Mapping[Side, Winner] = {"A": "second", "B": "first", "tie": "tie"}


def _preference(verdicts: Sequence[_Verdict[Side]], weighed: bool) -> Preference:
    forward = _FORWARD[verdicts[0].value] if verdicts[0].value else None
    attempts = sum(verdict.attempts for verdict in verdicts)
    if len(verdicts) == 1:
        return Preference(forward, forward, None, verdicts[0].reason, attempts)
    backward = _BACKWARD[verdicts[1].value] if verdicts[1].value else None
    reason = "\n".join(f"{order}: {v.reason}" for order, v in zip(("A, B", "B, A"), verdicts, strict=True))
    if forward is None or backward is None:
        return Preference(None, forward, backward, reason, attempts)
    winner: Winner = forward if forward == backward else "tie"
    if weighed:
        winner = _balanced(*(json.loads(verdict.reply)[_SHARES] for verdict in verdicts))
    return Preference(winner, forward, backward, reason, attempts)


def _balanced(forward: Mapping[str, float], backward: Mapping[str, float]) -> Winner:
    """The likeliest verdict on the mean of both orders, in which a liking for one place cancels (Wang et al., 2023)."""
    first, second = forward["A"] + backward["B"], forward["B"] + backward["A"]
    if forward["tie"] + backward["tie"] >= max(first, second) or math.isclose(first, second, rel_tol=1e-9):
        return "tie"
    return "first" if first > second else "second"


def agreement(
    human: Sequence[Hashable],
    judged: Sequence[Hashable | None],
    *,
    weights: Literal["linear", "quadratic"] | None = None,
) -> Agreement:
    """How far a judge agrees with people on the same items: Cohen's kappa (1960) and accuracy; None in ``judged`` is unparsable.

    ``weights`` is for grades, where a near miss is better than a far one. Kappa is None where only one label occurs: chance alone
    would then agree fully. Raises InputError for sequences of unlike lengths.
    """
    if len(human) != len(judged):
        raise InputError(f"human and judged must be equally long; got {len(human)} and {len(judged)}")
    pairs = [(h, j) for h, j in zip(human, judged, strict=True) if j is not None]
    out: Agreement = {"kappa": None, "accuracy": None, "n": len(pairs), "unparsable": len(human) - len(pairs)}
    if not pairs:
        return out
    from sklearn.metrics import cohen_kappa_score

    labels: list[Any] = sorted({label for pair in pairs for label in pair}, key=lambda one: (str(type(one)), one))
    place = {label: i for i, label in enumerate(labels)}
    left, right = ([place[pair[side]] for pair in pairs] for side in (0, 1))
    out["accuracy"] = sum(h == j for h, j in pairs) / len(pairs)
    if len(labels) > 1:
        out["kappa"] = float(cohen_kappa_score(left, right, weights=weights))
    return out
