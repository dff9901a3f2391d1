"""``luthier data answers``: a dataset of what a model says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens that make up this share.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="The most tokens of an answer; longer ones are left out.")] = 512,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same answers.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Without the prompt that the model was tuned with.")] = False,
) -> None:
    """Ask a model for an answer to every prompt and write them as conversations to train another on. Interrupted, it goes on where it was."""
    from luthier.cli import _print
    from luthier.core.engine import Sampling
    from luthier.data.answers import answers
    from luthier.data.read import read
    from luthier.strategies._load import load

    sampling = Sampling(max_new_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    prompts = read(file, limit=limit)
    opened = load(model, engine=engine, raw=raw)
    try:
        with _print.progress() as progress:
            made = answers(prompts, opened, out, sampling=sampling, system=system, progress=progress)
    finally:
        opened.close()
    before = f", {made.earlier:,} of them there before" if made.earlier else ""
    _print.say(f"{made.rows:,} answers of {model} in {made.path}{before}")
    if made.cut:
        _print.warn(f"{made.cut:,} answers were longer than {max_tokens} tokens and are left out: raise --max-tokens")
    if made.empty:
        _print.warn(f"{made.empty:,} answers were empty and are left out")
