"""Asking a running server from the command line."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from luthier.core.errors import EngineError, InputError, LuthierError

ServerUrl = Annotated[
    str, typer.Option("--server", metavar="URL", help="The running server, such as http://127.0.0.1:8000.")
]
KeyVariable = Annotated[
    str | None, typer.Option(metavar="VAR", help="Environment variable with a key that has the scope admin.")
]
LOCAL = "http://127.0.0.1:8000"


def ask_server(server: str, method: str, path: str, api_key_env: str | None, body: Any = None) -> Any:
    """The JSON that a server answers. Raises InputError for what it refuses, EngineError when it cannot be reached."""
    import httpx

    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise InputError(f"api_key_env names the environment variable {api_key_env!r}, which is not set")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"{server.rstrip('/').removesuffix('/v1')}/v1/{path}"
    try:
        answer = httpx.request(method, url, json=body, headers=headers, timeout=600.0)
        content = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise EngineError(
            f"{server} does not answer as a Luthier server: {error}", hint="luthier serve ... starts one"
        ) from error
    if answer.is_success:
        return content
    raise _refusal(answer.status_code, content)


def _refusal(status: int, content: Any) -> LuthierError:
    error = content.get("error") if isinstance(content, dict) else None
    message = str(error.get("message")) if isinstance(error, dict) else f"the server answered {status}"
    return InputError(message) if status < 500 else EngineError(message)
