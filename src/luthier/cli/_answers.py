"""``luthier data answers``: a dataset of what a model says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.core.dataset import Dataset
    from luthier.core.engine import Engine
    from luthier.data.answers import Answered
    from luthier.objectives._rewards import Rewards
    from luthier.store.database import Store


def answers_command(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Prompts: rows of any kind, as luthier data inspect reads them.")
    ],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="What answers: a model, adapter or endpoint.")],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE.jsonl", help="Where the conversations go; what is there already is kept."),
    ],
    *,
    engine: Annotated[str, typer.Option(help="auto, torch, llamacpp, openai or fake.")] = "auto",
    system: Annotated[str, typer.Option(help="A system message before prompts that have none.")] = "",
    samples: Annotated[int, typer.Option(help="Answers drawn to each prompt, of which --reward chooses.")] = 1,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCORER",
            help="exact, '{name: regex, pattern: ..., weight: 0.2}' or '{model: NAME}'; several add up.",
        ),
    ] = None,
    keep: Annotated[str, typer.Option(help="best, or pair: the best against the worst, as preference rows.")] = "best",
    least: Annotated[float | None, typer.Option(help="Leave out prompts whose best reward is below this.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy, the default for one sample; for several it is 1.")
    ] = None,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens that make up this share.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="The most tokens of an answer; longer ones are left out.")] = 512,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same answers.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="How to ask, for example zero_shot_cot, or '{name: chain_of_thought, shots: 0}'."
        ),
    ] = None,
    rationale: Annotated[
        bool,
        typer.Option("--rationale", help="Rows of question, answer and rationale, of a strategy that thinks first."),
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Without the prompt that the model was tuned with.")] = False,
) -> None:
    """Ask a model for an answer to every prompt and write them as conversations to train another on. Interrupted, it goes on where it was."""
    from luthier.cli import _print
    from luthier.core.engine import Sampling
    from luthier.data.answers import answers
    from luthier.data.read import read
    from luthier.store.database import open_store
    from luthier.strategies._load import load

    if temperature is None:
        temperature = 1.0 if samples > 1 else 0.0
    sampling = Sampling(max_new_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    prompts, store = read(file, limit=limit), open_store()
    rewards = _rewards(reward, prompts, store) if reward else None
    opened = load(model, engine=engine, raw=raw or strategy is not None, store=store)
    try:
        if strategy is not None:
            opened = _thinking(opened, strategy, prompts, store)
        with _print.progress() as progress:
            made = answers(
                prompts,
                opened,
                out,
                sampling=sampling,
                system=system,
                samples=samples,
                rewards=rewards,
                keep=keep,  # type: ignore[arg-type]  # checked there
                least=least,
                rationale=rationale,
                store=store,
                progress=progress,
            )
    finally:
        opened.close()
        if rewards is not None:
            rewards.close()
    _tell(made, model, keep, max_tokens)


def _tell(made: Answered, model: str, keep: str, max_tokens: int) -> None:
    """What was written, and what was left out."""
    from luthier.cli import _print

    before = f", {made.earlier:,} of them there before" if made.earlier else ""
    _print.say(f"{made.rows:,} {'pairs' if keep == 'pair' else 'answers'} of {model} in {made.path}{before}")
    if made.mean_reward is not None:
        _print.say(f"reward: mean {made.mean_reward:.4f}, mean of the best {made.best_reward:.4f}")
    if made.refused:
        _print.warn(
            f"{made.refused:,} prompts had no answer that was good enough, or only equal ones, and are left out"
        )
    if made.cut:
        _print.warn(f"{made.cut:,} answers were longer than {max_tokens} tokens and are left out: raise --max-tokens")
    if made.empty:
        _print.warn(f"{made.empty:,} answers were empty and are left out")


def _thinking(engine: Engine, text: str, prompts: Dataset, store: Store) -> Engine:
    """``engine`` with the strategy of the option, read as YAML; examples that it shows are rows of the file."""
    from luthier.core.config import Document, apply_overrides
    from luthier.core.task import PromptTemplate
    from luthier.strategies._build import prepare_strategy, read_strategy, wrap_strategy

    document = Document()
    apply_overrides(document, [f"strategy={text}"])
    name, options = read_strategy(document.values["strategy"], "--strategy")
    template = PromptTemplate(labels=prompts.labels)
    return wrap_strategy(engine, name, prepare_strategy(name, options, template, prompts.examples, store), store)


def _rewards(texts: list[str], prompts: Dataset, store: Store) -> Rewards:
    """What the options ``--reward`` say, each read as YAML; rows that they cannot score are refused."""
    from luthier.core.config import Document, apply_overrides
    from luthier.objectives._rewards import check_rows, rewards

    specs = []
    for text in texts:
        document = Document()
        apply_overrides(document, [f"reward={text}"])
        specs.append(document.values["reward"])
    made = rewards(specs, store=store)
    check_rows(made.parts, prompts)
    return made
