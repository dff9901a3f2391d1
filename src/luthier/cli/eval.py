"""``luthier eval MODEL TASK``: score a model on a task of your own or on a benchmark."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("eval")
    def evaluate(
        model: Annotated[str, typer.Argument(help="A stored model, an endpoint, openai:MODEL@URL, or fake.")],
        task: Annotated[
            str,
            typer.Argument(metavar="TASK", help="A task file (data, prompt, scorers), or a benchmark: luthier tasks."),
        ],
        overrides: Annotated[
            list[str] | None,
            typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the task, for example data=mmlu.jsonl shots=0."),
        ] = None,
        split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
        strategy: Annotated[
            str | None,
            typer.Option(help="How to ask, for example few_shot. Left out: the model's own way, or zero_shot."),
        ] = None,
        option: Annotated[
            list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the strategy, for example shots=4.")
        ] = None,
        limit: Annotated[int | None, typer.Option(help="Only the first examples.")] = None,
        engine: Annotated[str, typer.Option(help="auto, torch, llamacpp, openai or fake.")] = "auto",
        engine_option: Annotated[
            list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the engine, for example dtype=fp32.")
        ] = None,
        fresh: Annotated[bool, typer.Option("--fresh", help="Ask again, also what was answered before.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Score a model on a task, with intervals, and keep every answer. Interrupted, the same command goes on."""
        from luthier.cli import _print, _results
        from luthier.evaluation.evaluate import evaluate as run

        with _print.progress() as progress:
            result = run(
                model,
                task,
                overrides or [],
                split=split,  # type: ignore[arg-type]
                strategy=_strategy(strategy, option or []),
                limit=limit,
                engine=engine,
                options=_options(engine_option or []),
                progress=progress,
                fresh=fresh,
            )
        if as_json:
            _print.show_json(result.as_dict())
        else:
            _results.show_result(result)


def _strategy(name: str | None, options: list[str]) -> dict[str, Any] | None:
    from luthier.core.errors import InputError

    if name is None:
        if options:
            raise InputError(
                "--option belongs to a strategy, and none is named", hint="for example --strategy few_shot"
            )
        return None
    return {"name": name, **(_options(options) or {})}


def _options(options: list[str]) -> dict[str, Any] | None:
    from luthier.core.config import from_mapping

    return from_mapping({}, options).values or None
