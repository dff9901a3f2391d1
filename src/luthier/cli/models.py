"""``luthier models``: what the store holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli._server import LOCAL, KeyVariable, ServerUrl, ask_server

_LAYERS = "--layers must be whole numbers with commas between them, such as 0,2,4"


def register(app: typer.Typer) -> None:
    """Add the command and those under it."""

    models = typer.Typer(
        help="What the store holds: base models, adapters, exports and endpoints. Without a further word, list them.",
        invoke_without_command=True,
    )
    app.add_typer(models, name="models")

    @models.callback()
    def list_all(
        context: typer.Context,
        kind: Annotated[str | None, typer.Option(help="Only base, adapter, export or endpoint.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
        remove: Annotated[
            str | None, typer.Option(metavar="NAME", help="Remove this model and weights that only it uses.")
        ] = None,
    ) -> None:
        """List base models, adapters, exports and endpoints."""
        if context.invoked_subcommand is None:
            _list(kind, as_json, remove)

    @models.command()
    def shrink(
        name: Annotated[str, typer.Argument(help="A base or tuned model.")],
        new: Annotated[str, typer.Option("--as", metavar="NAME", help="The new model's name.")],
        layers: Annotated[
            str | None,
            typer.Option(metavar="N,N,...", help="Layers to keep, from 0 on; left out, every second one."),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Make a base with only some of a model's layers: a student, to be tuned with objective distill."""
        from dataclasses import asdict

        from luthier.cli import _print
        from luthier.cli._options import numbers
        from luthier.models.shrink import shrink as run

        given = None if layers is None else numbers(layers, int, _LAYERS)
        with _print.progress() as progress:
            made = run(name, new, given, progress=progress)
        if as_json:
            _print.show_json(asdict(made))
            return
        kept = ", ".join(map(str, made.meta["layers"]))
        _print.say(f"{made.name} = layers {kept} of {name}   ({_print.size(made.size_bytes)})")
        _print.say(
            f"next: luthier tune RUN.yaml model.base={made.name} objective.name=distill objective.teacher=TEACHER"
        )

    models.command("new")(new_model)
    models.command("load")(load_model)
    models.command("unload")(unload_model)


def load_model(
    name: Annotated[str, typer.Argument(help="A stored model, adapter or endpoint.")],
    served_as: Annotated[str, typer.Option("--as", metavar="NAME", help="The name that clients ask.")] = "",
    engine: Annotated[str, typer.Option(help="auto, torch, llamacpp or fake.")] = "auto",
    swap: Annotated[bool, typer.Option("--swap", help="Take the place of what is served under this name.")] = False,
    server: ServerUrl = LOCAL,
    api_key_env: KeyVariable = None,
) -> None:
    """Have a running server serve one more model."""
    from luthier.cli import _print

    body = {"model": name, "name": served_as, "engine": engine, "swap": swap}
    made = ask_server(server, "POST", "models", api_key_env, body)
    _print.say(f"{made['id']} is served now   (engine {made['engine']})")


def unload_model(
    name: Annotated[str, typer.Argument(help="A served model.")],
    server: ServerUrl = LOCAL,
    api_key_env: KeyVariable = None,
) -> None:
    """Have a running server serve a model no more. What it is answering just now it answers to the end."""
    from luthier.cli import _print

    ask_server(server, "DELETE", f"models/{name}", api_key_env)
    _print.say(f"{name} is served no more")


def new_model(
    name: Annotated[str, typer.Argument(help="The new model's name.")],
    architecture: Annotated[str, typer.Option(help="llama, gpt2 or bert.")] = "llama",
    size: Annotated[
        str | None,
        typer.Option(help="About so many parameters without embeddings: 1m, 2m, 5m, 10m, 25m, 50m, 85m, 300m."),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Layers; with --width and --heads instead of --size.")] = None,
    width: Annotated[int | None, typer.Option(help="Hidden size.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads.")] = None,
    kv_heads: Annotated[
        int | None, typer.Option(help="Heads of keys and values (llama); default: as many as heads.")
    ] = None,
    inner: Annotated[int | None, typer.Option(help="Size of the feed-forward layers.")] = None,
    context_length: Annotated[int, typer.Option(help="Tokens that it reads at once.")] = 512,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Take the tokenizer of this stored model.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="Train a tokenizer on these texts.")] = None,
    vocabulary: Annotated[int, typer.Option(help="The most tokens of a trained tokenizer.")] = 8192,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a model with random weights, to be trained from nothing: luthier tune RUN.yaml model.base=NAME method=full."""
    from dataclasses import asdict

    from luthier.cli import _print
    from luthier.core.errors import InputError
    from luthier.models.new import new

    if (tokenizer is None) == (data is None):
        raise InputError("give one of --tokenizer MODEL (of a stored model) and --data FILE (to train one on)")
    given: dict[str, Any] = {
        "size": size,
        "layers": layers,
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "inner": inner,
    }
    with _print.progress() as progress:
        made = new(
            name,
            data=data,
            progress=progress,
            architecture=architecture,
            context_length=context_length,
            seed=seed,
            tokenizer=tokenizer or {"train": {"vocabulary": vocabulary}},
            **{key: value for key, value in given.items() if value is not None},
        )
    if as_json:
        _print.show_json(asdict(made))
        return
    counts = f"{made.meta['parameters']:,} parameters, {made.meta['without_embeddings']:,} without embeddings"
    _print.say(f"{made.name} = a new {architecture} of {counts}   ({_print.size(made.size_bytes)})")
    _print.say(f"next: luthier tune RUN.yaml model.base={made.name} method=full")


def _list(kind: str | None, as_json: bool, remove: str | None) -> None:
    from dataclasses import asdict

    from luthier.cli import _print
    from luthier.store import models as stored
    from luthier.store.database import open_store

    store = open_store()
    if remove is not None:
        stored.remove(store, remove)
        _print.say(f"removed {remove}")
        return
    records = stored.list_models(store, kind)
    if as_json:
        _print.show_json([asdict(record) for record in records])
        return
    if not records:
        _print.say(f"no {kind or 'model'}{'' if kind else 's'} yet; begin with: luthier pull {stored.PULLABLE[0]}")
        return
    rows = []
    for record in records:
        how = record.meta.get("method") or record.meta.get("quantization") or record.meta.get("dtype") or ""
        of = record.meta.get("target") or record.base or ""
        made = (record.run_id or "") if record.kind != "base" else str(record.meta.get("source", "")).split("#")[0]
        size = _print.size(record.size_bytes) if record.size_bytes else ""
        kind_of = f"{record.kind} {record.architecture}"
        name = f"[bold]{record.name}[/]"
        rows.append((name, kind_of, how, size, record.licence, of, made, record.created_at[:10]))
    columns = ["name", "kind", "how", "size", "licence", "of", "made by", "created"]
    fit = len(columns) if _print.out().width >= 110 else -2  # a narrow terminal shows what a model is, not its past
    _print.show(_print.table(columns[:fit], [row[:fit] for row in rows], right=["size"], cut=["made by"]))
