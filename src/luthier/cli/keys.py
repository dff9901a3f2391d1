"""``luthier keys``: who may use a server, and how much of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from luthier.core.key import KeyRecord

_COLOURS = {"active": "green", "expired": "yellow", "revoked": "red"}
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Key = Annotated[str, typer.Argument(metavar="KEY", help="Its id, its first characters (lth_a1b2c3) or its name.")]
_Tenant = Annotated[str | None, typer.Option(metavar="NAME", help="Only this tenant's.")]
_LIMITS = "requests_per_minute, tokens_per_minute, tokens_per_day, concurrent_requests, cost_per_day, cost_per_month; none lifts one."


def register(app: typer.Typer) -> None:
    """Add the commands."""
    keys = typer.Typer(
        help="Keys for `luthier serve --keys`: of which tenant, for which models, with which limits. A key is shown once, when it is made.",
        no_args_is_help=True,
    )
    app.add_typer(keys, name="keys")
    _register_making(keys)
    _register_looking(keys)
    _register_limits(keys)


def _register_making(keys: typer.Typer) -> None:
    @keys.command()
    def create(
        tenant: Annotated[str, typer.Argument(help="Whose it is: a team, a customer, an application.")],
        *,
        name: Annotated[str, typer.Option(help="What it is for.")] = "",
        scope: Annotated[
            list[str] | None,
            typer.Option(help="inference, feedback, traces, batch, admin; repeat it. Default: inference and feedback."),
        ] = None,
        model: Annotated[
            list[str] | None, typer.Option(metavar="PATTERN", help="Models it may ask, such as 'acme-*'; repeat it.")
        ] = None,
        label: Annotated[
            list[str] | None,
            typer.Option(
                metavar="LABEL", help="Documents of knowledge bases that it may see, beside its tenant's; repeat it."
            ),
        ] = None,
        limit: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help=_LIMITS)] = None,
        expires: Annotated[
            str | None, typer.Option(metavar="WHEN", help="A span (90d, 12h) or a time (2027-01-31).")
        ] = None,
        as_json: _Json = False,
    ) -> None:
        """Make a key. It goes to stdout alone: KEY=$(luthier keys create acme)."""
        from luthier.store.database import open_store
        from luthier.store.keys import DEFAULT_SCOPES, create_key

        made, secret = create_key(
            open_store(),
            tenant,
            name,
            scopes=scope or DEFAULT_SCOPES,
            models=model or ("*",),
            labels=label or (),
            limits=_limits(limit or ()),
            expires=expires,
        )
        _hand_out(made, secret, as_json)

    @keys.command()
    def rotate(
        key: _Key,
        *,
        grace: Annotated[
            str | None, typer.Option(metavar="SPAN", help="How long the old one still works, such as 24h.")
        ] = None,
        as_json: _Json = False,
    ) -> None:
        """Give a key a new secret; its limits and what it used stay."""
        from luthier.store.database import open_store
        from luthier.store.keys import rotate_key

        _hand_out(*rotate_key(open_store(), key, grace=grace), as_json)

    @keys.command()
    def revoke(
        key: Annotated[list[str], typer.Argument(metavar="KEY...", help="Ids, first characters or names.")],
    ) -> None:
        """End keys for good. Running servers refuse them within about a second."""
        from luthier.cli._print import out
        from luthier.store.database import open_store
        from luthier.store.keys import find_key, revoke_key

        store = open_store()
        for found in [find_key(store, each) for each in key]:  # all are known before the first one ends
            revoke_key(store, found.id)
            out().print(f"{found.id} of {found.tenant} is revoked", markup=False)


def _register_looking(keys: typer.Typer) -> None:
    @keys.command("list")
    def list_all(
        tenant: _Tenant = None,
        every: Annotated[bool, typer.Option("--all", help="Also those that are revoked or expired.")] = False,
        as_json: _Json = False,
    ) -> None:
        """List keys."""
        from luthier.cli._print import say, show, show_json
        from luthier.store.database import open_store
        from luthier.store.keys import list_keys

        found = [each for each in list_keys(open_store(), tenant) if every or each.state() == "active"]
        if as_json:
            show_json([each.as_dict() for each in found])
        elif found:
            show(_table(found))
        else:
            say("No keys yet; `luthier keys create TENANT` makes one." if not tenant else f"No keys of {tenant}.")

    @keys.command("show")
    def show_one(key: _Key, as_json: _Json = False) -> None:
        """Show a key: everything but the key itself, which is not kept."""
        from luthier.cli._print import out, show_json
        from luthier.store.database import open_store
        from luthier.store.keys import find_key

        found = find_key(open_store(), key).as_dict()
        if as_json:
            show_json(found)
            return
        for name, value in found.items():
            if name != "object" and value not in (None, "", {}):
                out().print(f"{name:<13} {_plain(value)}", markup=False)

    @keys.command()
    def usage(
        *,
        tenant: _Tenant = None,
        since: Annotated[str, typer.Option(metavar="DAY", help="The first day (UTC), such as 2026-11-01.")] = "",
        until: Annotated[str, typer.Option(metavar="DAY", help="The last day.")] = "9999",
        by: Annotated[
            str, typer.Option(help="Any of day, tenant, key, model, with commas between them.")
        ] = "day,key,model",
        as_json: _Json = False,
    ) -> None:
        """Show what keys have used."""
        from luthier.cli._print import say, show, show_json
        from luthier.store.database import open_store
        from luthier.store.keys import list_keys
        from luthier.store.usage import list_usage

        store = open_store()
        names = ["key_id" if name.strip() == "key" else name.strip() for name in by.split(",")]
        rows = list_usage(store, since=since, until=until, tenant=tenant, by=names)
        if as_json:
            show_json(rows)
        elif rows:
            show(_board(rows, names, {key.id: key for key in list_keys(store)}))
        else:
            say("Nothing was used yet; `luthier serve --keys` counts it.")


def _register_limits(keys: typer.Typer) -> None:
    @keys.command()
    def limits(
        key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="A key; or name a --tenant.")] = None,
        values: Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help=_LIMITS)] = None,
        tenant: Annotated[
            str | None, typer.Option(metavar="NAME", help="The limits that all keys of a tenant share.")
        ] = None,
        as_json: _Json = False,
    ) -> None:
        """Show limits, or change them: luthier keys limits ci requests_per_minute=60 cost_per_month=20."""
        from luthier.cli._print import out, show_json
        from luthier.core.errors import InputError
        from luthier.store.database import open_store
        from luthier.store.keys import find_key, limit_key, limit_tenant, tenant_limits

        given = list(values or ())
        if key is not None and tenant is not None:
            given.insert(0, key)  # the first NAME=VALUE: there is no key beside --tenant
        elif key is None and tenant is None:
            raise InputError("name a key, or a --tenant", hint="luthier keys limits KEY requests_per_minute=60")
        store, changes = open_store(), _limits(given)
        if tenant is not None:
            held = limit_tenant(store, tenant, changes) if changes else tenant_limits(store, tenant)
        else:
            held = (limit_key(store, str(key), changes) if changes else find_key(store, str(key))).limits
        if as_json:
            show_json(held.as_dict())
        else:
            out().print(_plain(held.as_dict()) or "no limits", markup=False)


def _limits(texts: Any) -> dict[str, int | float | None]:
    """Limits from ``NAME=VALUE`` texts. Raises InputError."""
    from luthier.core.errors import InputError

    out: dict[str, int | float | None] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            if not equals:
                raise ValueError
            whole = not name.startswith("cost")
            out[name] = None if value.lower() == "none" else int(value.replace("_", "")) if whole else float(value)
        except ValueError as error:
            raise InputError(
                f"a limit must be NAME=NUMBER or NAME=none, such as requests_per_minute=60; got {text!r}"
            ) from error
    return out


def _hand_out(made: KeyRecord, secret: str, as_json: bool) -> None:
    """The key on stdout, alone; what it may on stderr."""
    import sys

    from rich.markup import escape

    from luthier.cli._print import say, show_json

    if as_json:
        show_json({**made.as_dict(), "key": secret})
        return
    sys.stdout.write(f"{secret}\n")
    sys.stdout.flush()
    said = [f"{made.id} of {made.tenant}", f"may {', '.join(made.scopes)}", f"ask {', '.join(made.models)}"]
    said += [_plain(made.limits.as_dict())] if made.limits else []
    said += [f"until {made.expires_at}"] if made.expires_at else []
    said += [f"the old one works until {made.old_until}"] if made.old_until else []
    say(f"[dim]{escape('; '.join(said))}[/]")
    say("[yellow]Keep it now: it is not shown again.[/]")


def _table(found: list[KeyRecord]) -> RenderableType:
    from rich.markup import escape

    from luthier.cli._print import table

    rows = [
        (
            each.id,
            f"{each.hint}…",
            escape(each.tenant),
            escape(each.name),
            f"[{_COLOURS[each.state()]}]{each.state()}[/]",
            ", ".join(each.scopes),
            escape(", ".join(each.models)),
            escape(_plain(each.limits.as_dict())),
            (each.expires_at or "never")[:16].replace("T", " "),
            (each.last_used_at or "never")[:16].replace("T", " "),
        )
        for each in found
    ]
    columns = ("id", "key", "tenant", "name", "state", "scopes", "models", "limits", "expires (UTC)", "last used")
    return table(columns, rows)


def _board(rows: list[dict[str, Any]], by: list[str], keys: dict[str, KeyRecord]) -> RenderableType:
    from rich.markup import escape

    from luthier.cli._print import table

    def cell(name: str, value: str) -> str:
        key = keys.get(value) if name == "key_id" else None
        return escape(f"{key.tenant}/{key.name or key.hint}" if key else value)

    counts = ("requests", "errors", "cache_hits", "prompt_tokens", "completion_tokens")
    made = [
        (*(cell(name, row[name]) for name in by), *(f"{row[name]:,}" for name in counts), f"{row['cost']:,.4f}")
        for row in rows
    ]
    if len(rows) > 1:
        sums = {name: sum(row[name] for row in rows) for name in (*counts, "cost")}
        blank = ["" for _ in by[1:]]
        made.append(
            ("[bold]all[/]", *blank, *(f"[bold]{sums[name]:,}[/]" for name in counts), f"[bold]{sums['cost']:,.4f}[/]")
        )
    columns = [
        *("key" if name == "key_id" else name for name in by),
        "requests",
        "errors",
        "cached",
        "tokens in",
        "tokens out",
        "cost",
    ]
    return table(columns, made, right=columns[len(by) :])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{name}={each:g}" if isinstance(each, float) else f"{name}={each}" for name, each in value.items()
        )
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
