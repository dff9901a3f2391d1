"""``luthier cache``: what servers keep of their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.store.cache import CacheStore

_Where = Annotated[
    Literal["sqlite", "redis"], typer.Option("--store", help="Where the cache is: the file of this home, or Redis.")
]
_Redis = Annotated[str, typer.Option(metavar="VAR", help="Environment variable with the URL of Redis.")]
_Server = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Ask a running server instead, such as http://127.0.0.1:8000: its memory, too."),
]
_Key = Annotated[str | None, typer.Option(metavar="VAR", help="Environment variable with a key for --server.")]
_REDIS_URL = "LUTHIER_REDIS_URL"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    cache = typer.Typer(
        help="Kept answers of `luthier serve` with a section cache: count them, forget them.", no_args_is_help=True
    )
    app.add_typer(cache, name="cache")

    @cache.command()
    def stats(
        where: _Where = "sqlite",
        redis_url_env: _Redis = _REDIS_URL,
        server: _Server = None,
        api_key_env: _Key = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Show how many answers are kept, by tenant and model, and with --server how often they were used."""
        if server is not None:
            found = _ask(server, "GET", api_key_env)
        else:
            found = _with_store(where, redis_url_env, lambda store: store.stats())
        _show(found, as_json)

    @cache.command()
    def clear(
        tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
        model: Annotated[str | None, typer.Option(help="Only those of this model.")] = None,
        where: _Where = "sqlite",
        redis_url_env: _Redis = _REDIS_URL,
        server: _Server = None,
        api_key_env: _Key = None,
    ) -> None:
        """Forget kept answers: all, a tenant's, or a model's."""
        from luthier.cli._print import out
        from luthier.store.audit import audit, user
        from luthier.store.database import open_store

        if server is not None:
            gone = _ask(server, "DELETE", api_key_env, tenant=tenant, model=model)["cleared"]
        else:
            gone = _with_store(where, redis_url_env, lambda store: store.clear(tenant, model))
            audit(open_store(), user(), "cache.clear", where, {"tenant": tenant, "model": model, "entries": gone})
        out().print(f"{gone:,} answers are forgotten", markup=False)


def _with_store(where: str, redis_url_env: str, work: Callable[[CacheStore], Any]) -> Any:
    from luthier.gateway.cache.config import CacheConfig, open_cache_store
    from luthier.store.database import open_store

    config = CacheConfig.model_validate({"store": where, "redis_url_env": redis_url_env})
    store = open_cache_store(config, open_store())
    try:
        return work(store)
    finally:
        store.close()


def _ask(server: str, method: str, api_key_env: str | None, **query: str | None) -> Any:
    import os

    import httpx

    from luthier.core.errors import EngineError, InputError

    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise InputError(f"api_key_env names the environment variable {api_key_env!r}, which is not set")
    url = f"{server.rstrip('/').removesuffix('/v1')}/v1/cache"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        asked = {name: value for name, value in query.items() if value is not None}
        answer = httpx.request(method, url, params=asked, headers=headers, timeout=60.0)
        body = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise EngineError(
            f"the server at {server} did not answer: {error}", hint="luthier serve ... --config gateway.yaml"
        ) from error
    if answer.status_code != 200:
        raise InputError(f"the server at {server} refused: {body['error']['message']}")
    return body


def _show(found: dict[str, Any], as_json: bool) -> None:
    from rich.markup import escape

    from luthier.cli._print import duration, say, show, show_json, size, table

    if as_json:
        show_json(found)
        return
    if "hit_rate" in found:
        counts = ", ".join(f"{name} {found[name]:,}" for name in ("exact", "semantic", "miss", "bypass"))
        say(f"{found['hit_rate']:.1%} of the questions were answered from the cache ({counts})")
    if not found["entries"]:
        say("Nothing is kept.")
        return
    rows = [
        (escape(each["tenant"]), escape(each["model"]), f"{each['entries']:,}", size(each["size_bytes"]))
        for each in found["by_model"]
    ]
    show(table(("tenant", "model", "answers", "size"), rows, right=("answers", "size")))
    say(f"{found['entries']:,} answers, {size(found['size_bytes'])}, the oldest {duration(found['oldest_s'])} old")
