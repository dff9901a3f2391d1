from __future__ import annotations

import pytest

from luthier.core.errors import InputError
from luthier.gateway.keys import Keys, check_bind, is_loopback, read_keys


def test_keys_are_read_from_the_named_variable_and_kept_hashed() -> None:
    keys = read_keys("K", {"K": " first-secret, second-secret ,"})
    assert len(keys.hashes) == 2
    assert "secret" not in repr(keys)
    assert all(b"secret" not in each for each in keys.hashes)


@pytest.mark.parametrize("header", ["Bearer first", "bearer second", "Bearer  first "])
def test_known_keys_are_allowed(header: str) -> None:
    assert read_keys("K", {"K": "first,second"}).allow(header)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer firs", "Basic first", "first", "Bearer first,second"]
)
def test_everything_else_is_not(header: str | None) -> None:
    assert not read_keys("K", {"K": "first,second"}).allow(header)


@pytest.mark.parametrize("environment", [{}, {"K": ""}, {"K": " , "}])
def test_a_variable_without_keys_is_an_error_that_names_it(environment: dict[str, str]) -> None:
    with pytest.raises(InputError, match="'K'"):
        read_keys("K", environment)


def test_no_variable_means_no_keys() -> None:
    assert not read_keys(None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    check_bind(host, Keys())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", "localhost.example.org", ""])
def test_a_public_address_needs_keys(host: str) -> None:
    with pytest.raises(InputError, match="api-key-env") as raised:
        check_bind(host, Keys())
    assert raised.value.exit_code == 2
    check_bind(host, read_keys("K", {"K": "secret"}))
