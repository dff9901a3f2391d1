"""Parity: does one model answer the same wherever it answers?

Training, the prompt renderer, torch, llama.cpp and a remote API are asked the same prompts. What must be equal to the token: prompt ids,
the tokens that end an answer, and the loss mask. What may differ by rounding: log-probabilities, and with them greedy answers. How far,
``parity_compare.TOLERANCES`` says, by the type of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.errors import InputError, MismatchError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress, no_progress
from luthier.core.task import PromptTemplate
from luthier.evaluation.parity_compare import (
    COUNTS,
    EXACT,
    TOKENIZER,
    TOLERANCES,
    Comparison,
    compare_answers,
    compare_ids,
    compare_numbers,
    compare_scores,
    compare_stops,
    compare_training,
)
from luthier.evaluation.parity_prompts import Case, built_in, from_file

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.data.render import Renderer
    from luthier.evaluation.parity_sides import Answered, Measured
    from luthier.store.database import Store

N, TOKENS, SCORED = 16, 16, 32
_OPTIONS = {"torch": ("auto", "bf16", "fp16", "fp32"), "llamacpp": ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")}
REMOTE = "bf16"  # the tolerance for weights of an unknown type


@dataclass(frozen=True)
class Parity:
    """The report. ``agrees``: nothing differs beyond its tolerance. ``answers`` are the reference's greedy tokens."""

    model: str
    prompts: int
    tokens: int
    comparisons: tuple[Comparison, ...]
    answers: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    @property
    def agrees(self) -> bool:
        """Whether every line is equal, within its tolerance, or only shown."""
        return not any(c.verdict == "differs" for c in self.comparisons)

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "answers"} | {"agrees": self.agrees}


@dataclass(frozen=True)
class _Subject:
    """What is checked: the stored weights that torch opens, and the record that llama.cpp opens (the same, or an export of them)."""

    name: str
    record: ModelRecord
    exported: ModelRecord
    base: ModelRecord
    template: PromptTemplate | None


def check_parity(
    model: str,
    *,
    against: Sequence[str] = ("torch", "llamacpp"),
    prompts: str | Path | Sequence[Case] | None = None,
    n: int = N,
    tokens: int = TOKENS,
    scored: int = SCORED,
    store: Store | None = None,
    progress: Progress = no_progress,
) -> Parity:
    """Compare ``model`` (a stored decoder, an export, an endpoint) with itself on other engines; torch in fp32 is the reference.

    ``against``: ``torch`` (as served) or ``torch:bf16``; ``llamacpp`` (every type that was exported, else F16) or ``llamacpp:Q8_0``;
    ``openai:MODEL@URL``. What has to be exported for it is removed afterwards. ``prompts`` is a data file, of which the first ``n`` rows
    are asked (or cases, all of which are); left out, ``n`` of 32 built-in prompts. Greedy answers have ``tokens`` tokens, and so many of
    the given answers of the first ``scored`` prompts are compared token by token.

    Raises NotFoundError for an unknown name, UnsupportedError for an encoder, InputError for an unknown side.
    """
    from luthier.models.load import load_renderer
    from luthier.store.artifacts import path_of
    from luthier.store.database import open_store

    store = store or open_store()
    if tokens < 1:
        raise InputError(f"tokens must be at least 1; got {tokens}")
    subject = _subject(store, model)
    wanted = _sides(store, subject, against)
    cases = _cases(prompts, n, subject.template)
    renderer = load_renderer(path_of(store, _folder_of(store, subject).digest))
    check = _Check(store, subject, cases, tokens, max(scored, 1), renderer, progress)
    found = compare_training(renderer, cases)
    remote = [check.ask(name) for kind, name in wanted if kind == "openai"]
    compared, answers = check.local([(kind, type_) for kind, type_ in wanted if kind != "openai"], remote)
    return Parity(model, len(cases), tokens, (*found, *compared), answers)


def _cases(prompts: str | Path | Sequence[Case] | None, n: int, template: PromptTemplate | None) -> Sequence[Case]:
    if prompts is None:
        return built_in(n, template)
    if isinstance(prompts, Sequence) and not isinstance(prompts, str):
        return prompts
    return from_file(prompts, n, template)


def check_identity(
    store: Store, record: ModelRecord, cases: Sequence[Case], *, llama_type: str | None = None
) -> list[Comparison]:
    """Only what must be equal, without computing anything: a trained model's ids, mask and stop tokens in training and serving, and
    with ``llama_type`` what llama.cpp makes of prompts and stop tokens. For bases that were not trained here, the latter alone."""
    from luthier.engines._llamacpp_probe import LlamaProbe
    from luthier.evaluation.parity_sides import ends_of, open_llama, own_ids
    from luthier.models.load import load_renderer
    from luthier.store.artifacts import path_of

    subject = _subject(store, record.name)
    renderer = load_renderer(path_of(store, _folder_of(store, subject).digest))
    found = compare_training(renderer, cases) if subject.record.kind == "adapter" else []
    if llama_type is not None:
        engine: Any = open_llama(store, subject.exported, llama_type)
        names = ("renderer", f"llama.cpp {llama_type}")
        try:
            probe = LlamaProbe(engine._server, engine._lora)
            ids = [renderer.prompt_ids(case.prompt) for case in cases]
            found.append(
                compare_ids(names, cases, ids, [engine._renderer.prompt_ids(c.prompt) for c in cases], renderer)
            )
            found.append(compare_ids(names, cases, ids, own_ids(probe, renderer, cases), renderer, TOKENIZER))
            ends, tried = ends_of(probe, renderer, ids[0])
            found.append(compare_stops(names, renderer, ends, tried))
        finally:
            engine.close()
    return found


def refuse_differences(comparisons: Sequence[Comparison], model: str) -> None:
    """Raise MismatchError when something that must be equal is not."""
    wrong = [c for c in comparisons if c.what in EXACT and c.verdict == "differs"]
    if wrong:
        lines = "\n".join(
            f"  {c.what}: {c.left} against {c.right}, {c.where or f'{c.equal} of {c.of} equal'}" for c in wrong
        )
        raise MismatchError(
            f"{model} would not be served as it was trained and evaluated:\n{lines}",
            hint=f"see luthier check parity {model}; to serve it all the same: --no-parity-check",
        )


# ---- what is compared


def _subject(store: Store, name: str) -> _Subject:
    from luthier.store.models import find

    record = find(store, name)
    prompt: Any = None
    while record.kind == "endpoint":
        prompt = prompt or record.meta.get("prompt")
        record = find(store, str(record.meta.get("target", "")))
    if record.architecture != "decoder":
        raise UnsupportedError(
            f"parity is for decoders; {name} is an {record.architecture}, which one engine answers for",
            hint="luthier eval scores it",
        )
    weights = find(store, str(record.meta["target"])) if record.kind == "export" else record
    base = find(store, weights.base) if weights.base else weights
    prompt = prompt or weights.meta.get("prompt")
    return _Subject(name, weights, record, base, PromptTemplate.from_dict(dict(prompt)) if prompt else None)


def _folder_of(store: Store, subject: _Subject) -> ModelRecord:
    """The record whose folder holds the tokenizer that serves."""
    from luthier.store.artifacts import path_of
    from luthier.store.models import find

    holder = subject.record
    while not (path_of(store, holder.digest) / "config.json").is_file() and holder.base:
        holder = find(store, holder.base)
    return holder


def _sides(store: Store, subject: _Subject, against: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, dtype, type or name) of each side, in order, once."""
    out: list[tuple[str, str]] = []
    for side in against:
        kind, _, option = side.partition(":")
        if kind not in ("torch", "llamacpp", "openai"):
            raise InputError(
                f"against must be torch[:DTYPE], llamacpp[:TYPE] or openai:MODEL@URL; got {side!r}",
                hint="vLLM and every other server with OpenAI's API: openai:MODEL@http://host:8000/v1",
            )
        if option and option not in _OPTIONS.get(kind, (option,)):
            raise InputError(f"against {kind} takes {', '.join(_OPTIONS[kind])}; got {option!r}")
        if kind == "torch":
            out.append((kind, option or "auto"))
        elif kind == "llamacpp":
            out += [(kind, each) for each in ([option] if option else _exported_types(store, subject))]
        else:
            out.append((kind, side))
    return list(dict.fromkeys(out))


def _exported_types(store: Store, subject: _Subject) -> list[str]:
    """The types of which there are exports; F16 when there is none."""
    from luthier.store.models import list_models

    if subject.exported.meta.get("holds") == "model":
        return [str(subject.exported.meta["quantization"])]
    targets = {subject.record.name, subject.base.name}
    found = [
        r for r in list_models(store, "export") if r.meta.get("target") in targets and r.meta.get("holds") == "model"
    ]
    return list(dict.fromkeys(str(r.meta["quantization"]) for r in found)) or ["F16"]


@contextmanager
def _temporary_exports(store: Store, subject: _Subject) -> Iterator[None]:
    """Exports of this model that come into being in the block are removed when it ends."""
    from luthier.store.models import list_models, remove

    def ours() -> list[str]:
        targets = {subject.record.name, subject.base.name}
        return [r.name for r in list_models(store, "export") if r.meta.get("target") in targets]

    before = set(ours())
    try:
        yield
    finally:
        for name in [name for name in ours() if name not in before]:
            remove(store, name)


@dataclass(frozen=True)
class _Check:
    """One check, resolved."""

    store: Store
    subject: _Subject
    cases: Sequence[Case]
    tokens: int
    scored: int
    renderer: Renderer
    progress: Progress

    @property
    def ids(self) -> list[list[int]]:
        return [self.renderer.prompt_ids(case.prompt) for case in self.cases]

    def rows(self) -> list[tuple[list[int], list[int]]]:
        """(prompt, the first tokens of the given answer, end-of-turn included where it is that short) of the cases that are scored."""
        cases = self.cases[: self.scored]
        answers = [self.renderer.continuation_ids(c.answer or "OK", ends_turn=True)[: self.tokens] for c in cases]
        return list(zip(self.ids, answers, strict=False))

    def ask(self, name: str) -> Answered:
        from luthier.evaluation.parity_sides import ask_remote

        base = self.subject.base.name
        return ask_remote(self.store, name, base, self.cases, self.rows(), self.tokens, self.progress)

    def local(
        self, wanted: Sequence[tuple[str, str]], remote: Sequence[Answered]
    ) -> tuple[list[Comparison], tuple[tuple[int, ...], ...]]:
        """torch in fp32, then everything against it; and the answers of torch in fp32."""
        from luthier.evaluation.parity_sides import measure_llama, measure_torch

        store, cases, rows = self.store, self.cases, self.rows()
        said = [self._said(answer) for answer in remote]
        every = [*rows, *(row for own in said for row in own)]
        whole = measure_torch(store, self.subject.record, "fp32", cases, every, self.tokens, self.progress)
        reference, found = self._cut(whole, 0, len(rows)), []
        found += [self._served(reference), self._own_scores(reference)]
        for kind, option in wanted:
            if kind == "torch":
                other = measure_torch(store, self.subject.record, option, cases, rows, self.tokens, self.progress)
                if other.name != reference.name:
                    found += [self._served(other), self._own_scores(other), *self._against(reference, other)]
                continue
            with _temporary_exports(store, self.subject):
                other = measure_llama(
                    store,
                    self.subject.exported,
                    option,
                    cases,
                    rows,
                    self.tokens,
                    max(map(len, self.ids)),
                    self.progress,
                )
            names = ("renderer", other.name)
            found += [
                self._served(other),
                compare_ids(names, cases, self.ids, other.tokenizer_ids, self.renderer, TOKENIZER),
                compare_stops(names, self.renderer, other.ends, other.probed),
                *self._against(reference, other),
            ]
        at = len(rows)
        for answer, own in zip(remote, said, strict=True):
            found += self._remote(reference, answer, self._cut(whole, at, at + len(own)), own)
            at += len(own)
        return found, tuple(reference.answers)

    def _cut(self, measured: Measured, begin: int, end: int) -> Measured:
        from dataclasses import replace

        return replace(measured, scores=measured.scores[begin:end])

    def _served(self, side: Measured) -> Comparison:
        return compare_ids(("renderer", side.name), self.cases, self.ids, side.prompt_ids, self.renderer)

    def _own_scores(self, side: Measured) -> Comparison:
        """What the engine scores (shared beginnings, packed continuations) against a plain forward of the same weights."""
        names = (f"{side.name}, one forward", f"{side.name}, served")
        cases = [case for case in self.cases if case.answer.strip()]
        return compare_numbers(names, "scores of answers", cases, side.plain, side.served, TOLERANCES[side.precision])

    def _against(self, reference: Measured, other: Measured) -> list[Comparison]:
        names = (reference.name, other.name)
        wanted = [ids for _, ids in self.rows()]
        tolerance = TOLERANCES[other.precision]
        return [
            *compare_scores(
                names, self.cases[: self.scored], wanted, reference.scores, other.scores, tolerance, self.renderer
            ),
            compare_answers(names, self.cases, reference.answers, other.answers),
        ]

    # ---- remote

    def _said(self, answer: Answered) -> list[tuple[list[int], list[int]]]:
        """The remote answers as rows for torch, where each has a log-probability for every one of its tokens."""
        rows = []
        for ids, text, told in zip(self.ids, answer.texts, answer.token_log_probs, strict=True):
            said = self.renderer.continuation_ids(text, ends_turn=False) if text else []
            if said and len(told) in (len(said), len(said) + 1):  # some report the end-of-turn token too
                rows.append((ids, said))
            else:
                rows.append((ids, []))
        return rows

    def _remote(
        self, reference: Measured, answer: Answered, own: Measured, rows: Sequence[tuple[list[int], list[int]]]
    ) -> list[Comparison]:
        from luthier.models.token_scores import TokenScores

        names, cases = ("renderer", answer.name), self.cases
        found = [compare_ids(names, cases, self.ids, answer.prompt_ids, self.renderer)]
        counts = [len(ids) for ids in self.ids]
        wrong = [(c, a, b) for c, a, b in zip(cases, counts, answer.prompt_tokens, strict=True) if b and a != b]
        told = sum(bool(b) for b in answer.prompt_tokens)
        where = f"{wrong[0][0].name}: {wrong[0][1]} against {wrong[0][2]}" if wrong else ""
        verdict: Any = ("differs" if wrong else "equal") if told else "not offered"
        found.append(Comparison(*names, COUNTS, told - len(wrong), told, verdict, where=where))
        names = (reference.name, answer.name)
        tolerance = TOLERANCES[REMOTE]
        if answer.echoed is not None:
            ids = [row for _, row in self.rows()]
            told_of = cases[: self.scored]
            found += compare_scores(names, told_of, ids, reference.scores, answer.echoed, tolerance, self.renderer)
        else:
            kept = [i for i, (_, said) in enumerate(rows) if said]
            theirs = [
                TokenScores(np.array(answer.token_log_probs[i][: len(rows[i][1])]), np.full(len(rows[i][1]), -1))
                for i in kept
            ]
            mine = [own.scores[i] for i in kept]
            asked = [rows[i][1] for i in kept]
            found += compare_scores(names, [cases[i] for i in kept], asked, mine, theirs, tolerance, self.renderer)
        texts = [self.renderer.decode(ids) for ids in reference.answers]
        found.append(compare_answers(names, cases, texts, answer.texts))
        return found
