"""Who may ask: bearer keys, and the rule that a server without keys stays on this machine.

Keys come from an environment variable (all of tenant ``local``, with every scope) and, with ``luthier serve --keys``, from the store
(``luthier keys``). They are looked up in memory; ``Keys.refresh`` reads the store again when something changed there.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from luthier.core.errors import InputError
from luthier.core.key import LOCAL, KeyRecord, Limits
from luthier.gateway.access.caller import Caller
from luthier.gateway.api.wire import RequestError
from luthier.store.database import Store
from luthier.store.keys import digest_of, keys_version, list_keys, list_tenants, note_last_used

UNASKED = Caller(scopes=frozenset(), models=())
"""Who asks for a path that is open to everybody without a key that is good."""

logger = logging.getLogger("luthier.gateway")


@dataclass(frozen=True, slots=True)
class _Known:
    digest: bytes
    caller: Caller
    until_s: float = float("inf")  # Unix time
    ends_as: str = "expired"


class Keys:
    """The keys that are accepted, kept as sha256 only. Without any, and without a store to ask, nobody is asked for one.

    Safe from several threads: a change replaces whole mappings.
    """

    def __init__(self, digests: Sequence[bytes] = (), store: Store | None = None) -> None:
        self.store = store
        self._fixed = {
            digest: _Known(digest, Caller(key_id=f"env-{number}")) for number, digest in enumerate(digests, 1)
        }
        self._known = self._fixed
        self._version = -1
        self.used: dict[str, float] = {}
        """When each key of the store was last used (Unix time), until ``write_used`` writes it down."""
        self.limits: Mapping[str, Limits] = {}
        """The limits of each key, by its id."""
        self.tenants: Mapping[str, Limits] = {}
        """The limits that a tenant's keys share."""
        if store is not None:
            self.refresh()

    def __bool__(self) -> bool:
        return bool(self._fixed) or self.store is not None

    def __repr__(self) -> str:
        return f"Keys({len(self._known)})"

    def caller(self, authorization: str | None) -> Caller:
        """Who sent this ``Authorization: Bearer KEY`` header. Raises RequestError 401 when it names no key that is good now.

        What is looked up is the sha256 of what came, so that the answer's timing says nothing about a key.
        """
        scheme, _, key = (authorization or "").partition(" ")
        given = digest_of(key.strip()) if scheme.lower() == "bearer" else b""
        found = self._known.get(given)
        if found is None or not hmac.compare_digest(found.digest, given):
            raise _refused("invalid_api_key", "the one that came is not known" if authorization else "none came")
        at_s = time.time()
        if at_s >= found.until_s:
            raise _refused(f"{found.ends_as}_api_key", f"the one that came is {found.ends_as}")
        if self.store is not None:
            self.used[found.caller.key_id] = at_s
        return found.caller

    def caller_of(self, key_id: str) -> Caller | None:
        """Who has the key of this id, if it is good now: for work that goes on after its request. Nobody's id ("") is of a server without keys."""
        if not key_id or not self:
            return Caller()
        return next(
            (
                each.caller
                for each in self._known.values()
                if each.caller.key_id == key_id and time.time() < each.until_s
            ),
            None,
        )

    def refresh(self) -> bool:
        """Read the store's keys and limits again if any changed; returns whether. Raises StoreError when the store refuses."""
        if self.store is None:
            return False
        version = keys_version(self.store)
        if version == self._version:
            return False
        records = list_keys(self.store)
        self.tenants = list_tenants(self.store)
        self.limits = {each.id: each.limits for each in records}
        self._known = self._fixed | {known.digest: known for each in records for known in _known(each)}
        self._version = version
        return True

    def write_used(self) -> None:
        """Write down in the store when keys were last used."""
        used, self.used = self.used, {}
        if self.store is not None and used:
            note_last_used(self.store, {each: _iso(at_s) for each, at_s in used.items()})


def _known(record: KeyRecord) -> Iterable[_Known]:
    caller = Caller(record.tenant, record.id, frozenset(record.scopes), record.models, record.labels)
    until_s, ends_as = _unix(record.expires_at), "expired"
    if record.revoked_at is not None:
        until_s, ends_as = 0.0, "revoked"
    yield _Known(record.digest, caller, until_s, ends_as)
    if record.old_digest is not None:
        yield _Known(record.old_digest, caller, min(until_s, _unix(record.old_until)), ends_as)


def _iso(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _unix(iso: str | None) -> float:
    return datetime.fromisoformat(iso).astimezone(UTC).timestamp() if iso else float("inf")


def _refused(code: str, said: str) -> RequestError:
    return RequestError(
        f"a key is needed in the header 'Authorization: Bearer KEY'; {said}",
        status=401,
        code=code,
        headers={"WWW-Authenticate": "Bearer"},
    )


def read_keys(
    variable: str | None, environment: Mapping[str, str] | None = None, *, store: Store | None = None
) -> Keys:
    """The comma-separated keys in an environment variable, and those of ``store``; neither, no keys.

    Raises InputError when the variable is unset or holds no key. The message names the variable, never its content.
    """
    if variable is None:
        return Keys(store=store)
    text = (os.environ if environment is None else environment).get(variable)
    keys = [key.strip() for key in (text or "").split(",") if key.strip()]
    if not keys:
        state = "is not set" if text is None else "holds no key"
        raise InputError(
            f"api_key_env names the environment variable {variable!r}, which {state}",
            hint=f"export {variable}=$(openssl rand -hex 24)   (several keys: separate them with commas)",
        )
    return Keys([digest_of(key) for key in keys], store)


def check_bind(host: str, *, asks: bool) -> None:
    """Refuse an address that other machines can reach unless the server ``asks`` for keys. Raises InputError."""
    if asks or is_loopback(host):
        return
    raise InputError(
        f"host must be a loopback address (127.0.0.1, ::1, localhost) while no key is set: on {host!r} "
        "everybody on the network could use these models",
        hint=f"luthier keys create {LOCAL}; luthier serve ... --host {host} --keys   "
        "(or keys of your own: --api-key-env LUTHIER_API_KEY)",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``. A name other than ``localhost`` counts as public."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
