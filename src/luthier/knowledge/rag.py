"""Answers from documents: a knowledge base and a model that writes, as one engine (Lewis et al. 2020, https://arxiv.org/abs/2005.11401)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from luthier.core import catalog
from luthier.core.digest import digest_json
from luthier.core.document import Hit
from luthier.core.engine import (
    EMBED,
    GENERATE,
    RERANK,
    SCORE,
    STREAM,
    ContinuationScore,
    Delta,
    Engine,
    EngineInfo,
    Generation,
    Sampling,
    ScoreRequest,
    Vectors,
    check_health,
    require,
)
from luthier.core.errors import InputError, LuthierError, NotFoundError
from luthier.core.message import Prompt
from luthier.core.run import Progress, no_progress
from luthier.knowledge.answers._fit import fitted, prompts
from luthier.knowledge.answers._talk import AnswerTools, Say, ShownConfig
from luthier.knowledge.index import Filter
from luthier.knowledge.prompt import prompt_digest, rag_prompt, read_question
from luthier.knowledge.search import DEFAULT as DEFAULT_RETRIEVAL
from luthier.knowledge.search import MOST, check_retrieval, resolved
from luthier.knowledge.talk import Talking, Writer
from luthier.strategies._thinking import Ask, Reply, ask_all

if TYPE_CHECKING:
    from luthier.store.database import Store

DEFAULT_MODE = "stuff"
DEFAULT_K = 5
PREFIX = "kb:"
"""What names of models begin with that are knowledge bases."""

_BYTES_PER_TOKEN = 3
"""For models whose tokenizer is not here: Chinese has about a token a character, English fewer than one a third of a word."""


class Searchable(Protocol):
    """What can be asked for passages: a knowledge base, or something like one."""

    @property
    def name(self) -> str:
        """Its name."""

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
        """The ``k`` best chunks, best first; ``notes`` gathers what the steps did."""


def rag(
    base: Searchable,
    engine: Engine,
    *,
    mode: str = DEFAULT_MODE,
    options: Mapping[str, Any] | None = None,
    k: int = DEFAULT_K,
    retrieval: Sequence[Mapping[str, Any]] | None = None,
    where: Filter | None = None,
    least: Mapping[str, float] | None = None,
    rewrite: bool = True,
    reranker: Engine | None = None,
    count: Callable[[Prompt], int] | None = None,
) -> RagEngine:
    """``engine``, answering from the documents of ``base``.

    ``mode`` is an entry of the catalogue ``answers``, ``options`` are its own. Of each search the ``k`` best passages are taken, by the steps of
    ``retrieval`` (the base's when None) within ``where``; of those, when ``least`` names scores (``{"rerank": 0.3}``), the ones that reach one of
    them. ``rewrite``: a question with turns before it is first written so that it stands alone. ``count`` gives the tokens of a prompt as the
    model reads it; without it they are estimated. The base stays open when the engine is closed.

    Raises InputError or NotFoundError for wrong options, UnsupportedError for an engine that cannot generate.
    """
    return RagEngine(
        base,
        engine,
        mode=mode,
        config=catalog.load("answers", mode).configure(options),
        k=k,
        retrieval=retrieval,
        where=where,
        least=least,
        rewrite=rewrite,
        reranker=reranker,
        count=count,
    )


class RagEngine:
    """See ``rag``. ``Generation.hits`` are the passages shown (``[1]`` is the first), ``citations`` those that the answer's marks point to; for an answer
    without any, those that its sentences are taken from (the step ``attribute`` says so).

    It honours the parameters of the engine that writes, log-probabilities aside, since marks that point nowhere leave the text; a mode
    that asks several times does not honour tools either. ``score`` gives the log-likelihood of answers after the prompt of mode ``stuff``.
    """

    def __init__(
        self,
        base: Searchable,
        engine: Engine,
        *,
        mode: str,
        config: Any,
        k: int,
        retrieval: Sequence[Mapping[str, Any]] | None,
        where: Filter | None,
        least: Mapping[str, float] | None,
        rewrite: bool,
        reranker: Engine | None,
        count: Callable[[Prompt], int] | None,
        owned: Sequence[Any] = (),
    ) -> None:
        require(engine, GENERATE)
        if not 1 <= k <= MOST:
            raise InputError(f"k must be 1 to {MOST}; got {k}")
        if retrieval is not None:
            check_retrieval(retrieval)
        if reranker is not None:
            require(reranker, RERANK)
        self.inner, self.mode, self.k, self.where = engine, mode, k, where
        self._entry, self._config = catalog.load("answers", mode), config
        self._least, self._rewrite, self._reranker = dict(least or {}), rewrite, reranker
        self._retrieval = None if retrieval is None else list(retrieval)
        self._count = count or getattr(engine, "count_tokens", None) or estimated_tokens
        self._writer = Writer(engine)
        self.base = _with_writer(base, self._writer)
        self._owned = (engine, *owned)
        self._info = self._described()

    def _described(self) -> EngineInfo:
        inner = self.inner.info
        steps = self._retrieval if self._retrieval is not None else _steps_of(self.base)
        options = self._config.model_dump(mode="json")
        decides = [inner.prompt_digest, self.base.name, self.version(), self.mode, options, self.k, resolved(steps)]
        kept = inner.parameters - {"logprobs"}
        return inner.with_(
            model=f"{PREFIX}{self.base.name}",
            capabilities=(inner.capabilities & {GENERATE, SCORE}) | {STREAM},
            parameters=kept if self._entry.optional("TOOLS") else kept - {"tools"},
            prompt_digest=digest_json(["rag", prompt_digest(), *decides, sorted(self._least.items()), self._rewrite]),
            meta=(
                *inner.meta,
                ("knowledge_base", self.base.name),
                ("writer", inner.model),
                ("mode", self.mode),
                ("k", self.k),
            ),
        )

    @property
    def info(self) -> EngineInfo:
        """The inner engine's under the base's name; ``meta`` names the model that writes, the mode and ``k``."""
        return self._info

    def within(self, where: Filter | None) -> RagEngine:
        """The same engine, which finds only what ``where`` allows. It shares everything and needs no closing.

        Its ``info.meta`` says the base's version now and the filter: equal questions to equal infos have equal answers.
        """
        seen = object.__new__(type(self))
        limits = "" if where is None else digest_json(asdict(where))
        meta = (*self._info.meta, ("knowledge_version", self.version()), ("where", limits))
        seen.__dict__ = {**self.__dict__, "where": where, "_owned": (), "_info": self._info.with_(meta=meta)}
        return seen

    def version(self) -> int:
        """How often the base's documents were changed; 0 for what is no knowledge base. Answers of one version may be kept."""
        from luthier.knowledge.base import KnowledgeBase
        from luthier.store.knowledge import base_version

        return base_version(self.base.store, self.base.name) if isinstance(self.base, KnowledgeBase) else 0

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One answer a prompt, in order; what all of them ask next is one batch. Raises what the search and the engine raise."""
        talks = [self._talk(prompt, sampling) for prompt in prompts]
        waiting: dict[int, Sequence[Ask] | Say] = {}
        answers: dict[int, Generation] = {}

        def go_on(place: int, replies: Any) -> None:
            try:
                waiting[place] = talks[place].send(replies)
            except StopIteration as end:
                answers[place] = talks[place].finished(end.value)
                waiting.pop(place, None)

        for place in range(len(talks)):
            go_on(place, None)
        while waiting:
            wanted = dict(waiting)
            asks = [ask for each in wanted.values() for ask in ([each.ask] if isinstance(each, Say) else each)]
            made = iter(ask_all(self.inner, asks))
            for place, each in wanted.items():
                if isinstance(each, Say):
                    go_on(place, _answer_of(next(made)))
                else:
                    go_on(place, [next(made) for _ in each])
            progress("generate", len(answers), len(prompts))
        return [answers[place] for place in range(len(prompts))]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """Empty pieces while it reads, then the answer as it is written; the pieces joined are the text."""
        return self._stream(self._talk(prompt, sampling))

    def _stream(self, talk: Talking) -> Iterator[Delta]:
        replies: Any = None
        while True:
            try:
                wanted = talk.send(replies)
            except StopIteration as end:
                answer = talk.finished(end.value)
                rest = answer.text[len(talk.said) :] if answer.text.startswith(talk.said) else ""
                calls = answer.tool_calls if not talk.called else ()
                if rest or calls:
                    yield Delta(rest, tool_calls=calls)
                yield Delta("", answer)
                return
            yield Delta("")
            if isinstance(wanted, Say) and STREAM in self.inner.info.capabilities:
                replies = yield from talk.say(wanted)
            else:
                made = ask_all(self.inner, [wanted.ask] if isinstance(wanted, Say) else wanted)
                replies = _answer_of(made[0]) if isinstance(wanted, Say) else made

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """Log-likelihoods after the question with the passages that are found for it, whatever the mode."""
        require(self, SCORE)
        asked = []
        for request in requests:
            question = read_question(request.prompt)
            longest = max((estimated_tokens(text) for text in request.continuations), default=1)
            tools = self._tools(Sampling(max_new_tokens=longest), question.history, [])
            shown = ShownConfig(
                order=getattr(self._config, "order", "best_first"), instruction=getattr(self._config, "instruction", "")
            )
            question, hits = fitted(question, tools.find(question.text), prompts(shown), tools, shown.order)
            prompt = rag_prompt(question, hits, instruction=shown.instruction)
            asked.append(ScoreRequest(prompt, request.continuations))
        return self.inner.score(asked, progress)

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """Raises UnsupportedError."""
        require(self, EMBED)
        return self.inner.embed(texts, progress)

    def healthy(self, timeout_s: float) -> None:
        """Raises EngineError when the model that writes is not well."""
        check_health(self.inner, timeout_s)

    def close(self) -> None:
        """Close the model that writes, and the base where ``open_rag`` opened it. Safe to call twice."""
        for each in self._owned:
            each.close()

    def _talk(self, prompt: Prompt, sampling: Sampling) -> Talking:
        question = read_question(prompt)
        calls: list[Generation] = []
        tools = self._tools(sampling, question.history, calls)
        return Talking(self.inner, self._entry(question, self._config, tools), tools, calls)

    def _tools(self, sampling: Sampling, history: Sequence[str], calls: list[Generation]) -> AnswerTools:
        steps: list[Mapping[str, Any]] = []

        def find(text: str) -> list[Hit]:
            start = time.perf_counter()
            told: list[dict[str, Any]] = []
            with self._writer.noting(calls) as written:
                hits = self.base.search(
                    text,
                    self.k,
                    self.where,
                    retrieval=self._steps_for(history),
                    history=history,
                    reranker=self._reranker,
                    notes=told,
                )
            good = self._reaching(hits)
            noted: dict[str, Any] = {
                "step": "retrieve",
                "base": self.base.name,
                "version": self.version(),
                "query": text,
            }
            noted["found"] = [hit.chunk.id for hit in good]
            if len(good) < len(hits):
                noted["below_least"] = len(hits) - len(good)
            if failed := {each["step"]: each["failed"] for each in told if "failed" in each}:
                noted["left_out"] = failed
            if written:
                noted["written"] = [each.text for each in written]
            steps.append(noted | {"seconds": round(time.perf_counter() - start, 4)})
            return good

        return AnswerTools(find, self._count, _embed_of(self.base), self.inner.info, sampling, steps)

    def _steps_for(self, history: Sequence[str]) -> Sequence[Mapping[str, Any]] | None:
        """The steps of the search; a question with turns before it is made to stand alone first."""
        if not history or not self._rewrite:
            return self._retrieval
        own = self._retrieval if self._retrieval is not None else _steps_of(self.base)
        return own if any(step.get("name") == "rewrite" for step in own) else [{"name": "rewrite"}, *own]

    def _reaching(self, hits: Sequence[Hit]) -> list[Hit]:
        """Those that reach one of the least scores. Raises InputError for scores that no step of the search gives."""
        known = {name for hit in hits for name in hit.scores}
        if hits and self._least and not known & set(self._least):
            raise InputError(
                f"least names the score {', '.join(self._least)}; the steps of this search give: {', '.join(sorted(known)) or 'none'}"
            )
        return [hit for hit in hits if self._reaches(hit)]

    def _reaches(self, hit: Hit) -> bool:
        return not self._least or any(
            name in hit.scores and hit.scores[name] >= least for name, least in self._least.items()
        )


def open_rag(
    name: str,
    *,
    model: str = "",
    mode: str = "",
    options: Mapping[str, Any] | None = None,
    k: int | None = None,
    retrieval: Sequence[Mapping[str, Any]] | None = None,
    where: Filter | None = None,
    least: Mapping[str, float] | None = None,
    rewrite: bool | None = None,
    store: Store | None = None,
    engine: Engine | None = None,
    opens_with: str = "auto",
    raw: bool = False,
    reranker: Engine | str | None = None,
    shared: dict[Any, Any] | None = None,
) -> RagEngine:
    """The knowledge base ``name`` (``kb:NAME`` too) as an engine, answered as the base's record says where nothing else is said.

    ``model`` is the name of the one that writes, ``engine`` is it when it is open already (it is closed with the rest). The record's ``answer`` is
    ``{"model", "mode", "k", "least", "rewrite", "reranker", **options of the mode}``. ``opens_with`` names the engine for the model (torch, llamacpp, ...),
    ``raw`` leaves away the prompt that it was tuned with; ``shared`` is as in ``strategies._load.load_many``.

    Raises NotFoundError for an unknown base or model, InputError when no model is named and for wrong options, MismatchError when the base's
    embedding model has changed.
    """
    from luthier.knowledge.base import open_base
    from luthier.store.database import open_store
    from luthier.store.knowledge import find_base

    store = store or open_store()
    name = name.removeprefix(PREFIX)
    told = dict(find_base(store, name).answer)
    own = {each: told.pop(each, None) for each in ("model", "mode", "k", "least", "rewrite", "reranker")}
    mode = mode or own["mode"] or DEFAULT_MODE
    if own["mode"] not in (None, mode):
        told = {}  # they are options of another mode
    model = model or str(own["model"] or "")
    if engine is None and not model:
        raise InputError(
            f"knowledge base {name} does not say which model writes its answers",
            hint=f"luthier kb set {name} answer.model=MODEL",
        )
    opened: list[Any] = []
    try:
        if engine is None:
            engine = _loaded(model, store, shared, opens_with, raw=raw)
        opened.append(engine)
        base = open_base(name, store=store)
        opened.append(base)
        reranker = reranker or own["reranker"]
        if isinstance(reranker, str):
            reranker = _loaded(reranker, store, shared)
            opened.append(reranker)
        made = RagEngine(
            base,
            engine,
            mode=mode,
            config=catalog.load("answers", mode).configure({**told, **(options or {})}),
            k=k or own["k"] or DEFAULT_K,
            retrieval=retrieval,
            where=where,
            least=own["least"] if least is None else least,
            rewrite=own["rewrite"] is not False if rewrite is None else rewrite,
            reranker=reranker,
            count=_counter(store, model, engine),
            owned=opened[1:],
        )
    except BaseException:
        for each in opened:
            each.close()
        raise
    return made


def open_named(
    name: str,
    *,
    engine: str = "auto",
    store: Store | None = None,
    options: Mapping[str, Any] | None = None,
    raw: bool = False,
    shared: dict[Any, Any] | None = None,
) -> RagEngine:
    """``kb:NAME`` as the name of a model. ``options``: ``model``, ``mode``, ``k``, ``least``, ``rewrite``, ``retrieval`` and ``reranker`` in place of the base's own;
    all others are the mode's. Raises as ``open_rag``."""
    told = dict(options or {})
    named = {
        key: told.pop(key) for key in ("model", "mode", "k", "least", "rewrite", "retrieval", "reranker") if key in told
    }
    return open_rag(name, options=told, store=store, opens_with=engine, raw=raw, shared=shared, **named)


def _loaded(
    model: str, store: Store, shared: dict[Any, Any] | None, engine: str = "auto", *, raw: bool = False
) -> Engine:
    from luthier.strategies._load import load_many

    if model.startswith(PREFIX):
        raise InputError(f"{model} is a knowledge base; name the model that writes for it")
    return load_many([model], engine=engine, store=store, raw=raw, shared=shared)[model]


def _counter(store: Store, model: str, engine: Engine) -> Callable[[Prompt], int] | None:
    """Counts prompts with the renderer of a stored model; None when there is none."""
    from luthier.store.models import find
    from luthier.strategies._labels import prompt_counter, tokenizer_folder

    own: Callable[[Prompt], int] | None = getattr(engine, "count_tokens", None)
    if own is not None:
        return own
    try:
        record = find(store, model or engine.info.model)
    except NotFoundError:
        return None
    return prompt_counter(store, record, engine) if tokenizer_folder(store, record) is not None else None


def estimated_tokens(prompt: Prompt) -> int:
    """About how many tokens a prompt has, where no tokenizer is known: rather too many than too few."""
    texts = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt]
    return sum(8 + len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN for text in texts)


def _with_writer(base: Searchable, writer: Writer) -> Searchable:
    """``base``, whose searches ask ``writer`` where they have a model write and the base has none of its own."""
    from luthier.knowledge.base import KnowledgeBase

    if not isinstance(base, KnowledgeBase) or base.ask is not None:
        return base
    return replace(base, ask=cast("Engine", writer))


def _steps_of(base: Searchable) -> Sequence[Mapping[str, Any]]:
    """The steps of the base's own searches."""
    record = getattr(base, "record", None)
    return (record.retrieval if record is not None else ()) or DEFAULT_RETRIEVAL


def _embed_of(base: Searchable) -> Callable[[Sequence[str]], Vectors] | None:
    embedder = getattr(base, "embedder", None)
    return embedder.embed if embedder is not None else None


def _answer_of(reply: Reply) -> Generation:
    if isinstance(reply, LuthierError):
        raise reply
    return reply
