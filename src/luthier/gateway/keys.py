"""Who may ask: bearer keys, and the rule that a server without keys stays on this machine."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from luthier.core.errors import InputError


@dataclass(frozen=True)
class Keys:
    """The keys that are accepted, kept as sha256 only. Empty: nobody is asked for one."""

    hashes: tuple[bytes, ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.hashes)

    def allow(self, authorization: str | None) -> bool:
        """Whether an ``Authorization: Bearer KEY`` header names one of the keys.

        Digests are compared, all of them and in constant time, so that the answer's timing says nothing about a key.
        """
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, known) for known in self.hashes]
        return any(matches)


def read_keys(variable: str | None, environment: Mapping[str, str] | None = None) -> Keys:
    """The comma-separated keys in an environment variable; no variable, no keys.

    Raises InputError when the variable is unset or holds no key. The message names the variable, never its content.
    """
    if variable is None:
        return Keys()
    text = (os.environ if environment is None else environment).get(variable)
    keys = [key.strip() for key in (text or "").split(",") if key.strip()]
    if not keys:
        state = "is not set" if text is None else "holds no key"
        raise InputError(
            f"api_key_env names the environment variable {variable!r}, which {state}",
            hint=f"export {variable}=$(openssl rand -hex 24)   (several keys: separate them with commas)",
        )
    return Keys(tuple(_digest(key) for key in keys))


def check_bind(host: str, keys: Keys) -> None:
    """Refuse an address that other machines can reach when there is no key. Raises InputError."""
    if keys or is_loopback(host):
        return
    raise InputError(
        f"host must be a loopback address (127.0.0.1, ::1, localhost) while no key is set: on {host!r} "
        "everybody on the network could use these models",
        hint=f"export LUTHIER_API_KEY=$(openssl rand -hex 24); luthier serve ... --host {host} --api-key-env LUTHIER_API_KEY",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``. A name other than ``localhost`` counts as public."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
