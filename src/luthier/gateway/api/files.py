"""/v1/files: what tenants upload for batches and for vector stores, and what batches write for them."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from fastapi import FastAPI
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response

from luthier.core.batch import FileRecord
from luthier.gateway.access.caller import Caller
from luthier.gateway.answer import json_response
from luthier.gateway.api.openapi import COUNT, TEXT, gives, listing, record
from luthier.gateway.api.wire import RequestError
from luthier.gateway.service import Service
from luthier.store.files import delete_file, file_path, find_file, held_by, keep_file, list_files, receiving

PURPOSES = ("batch", "assistants")
"""``batch``: JSONL of requests; ``assistants``: a document for a vector store, of any kind that is parsed."""
MOST_FILES = 10_000
UPLOAD_TIMEOUT_S = 600.0
_AT_ONCE = 4
_AROUND = 64 * 1024  # bytes of a form besides its file
_DISCARD = 64 * 2**20  # of an oversized upload so much is read on, so that the client gets to read the refusal
_BLOCK = 2**20

_FILE: dict[str, Any] = {
    "id": TEXT, "object": {"const": "file"}, "bytes": COUNT, "created_at": COUNT, "filename": TEXT, "purpose": TEXT, "status": TEXT,
}  # fmt: skip
FILE = record(_FILE)
FILES = record({"object": {"const": "list"}, "data": listing(FILE), "has_more": {"type": "boolean"}})
DELETED = record({"id": TEXT, "object": {"const": "file"}, "deleted": {"const": True}})
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"enum": list(PURPOSES)}},
                }
            }
        },
    }
}


def register(app: FastAPI, service: Service) -> None:
    """Add the endpoints."""
    uploads = asyncio.Semaphore(_AT_ONCE)

    @app.post("/v1/files", openapi_extra=FORM, responses=gives(FILE))
    async def upload(request: Request) -> Response:
        """Keep a file."""
        caller = _owner(request)
        if uploads.locked():
            raise RequestError(
                f"{_AT_ONCE} files are being uploaded, which is as many as this server takes; try again in a moment",
                status=429,
                code="busy",
                headers={"Retry-After": "5", "Connection": "close"},
            )
        async with uploads:
            made = await _receive(service, request, caller)
        return json_response(made.as_dict())

    @app.get("/v1/files", responses=gives(FILES))
    async def listed(
        request: Request, after: str | None = None, limit: int = 100, order: str = "desc", purpose: str | None = None
    ) -> Response:
        """The tenant's files."""
        caller = _owner(request)
        if not 1 <= limit <= MOST_FILES or order not in ("asc", "desc"):
            raise RequestError(
                f"limit must be 1 to {MOST_FILES:,} and order asc or desc; got {limit} and {order!r}", param="limit"
            )
        found = await asyncio.to_thread(
            lambda: list_files(
                service.store, caller.tenant, purpose=purpose, after=after, limit=limit + 1, ascending=order == "asc"
            )
        )
        return json_response(page([each.as_dict() for each in found], limit))

    @app.get("/v1/files/{file_id}", responses=gives(FILE))
    async def one(request: Request, file_id: str) -> Response:
        """One file's description."""
        caller = _owner(request)
        return json_response((await asyncio.to_thread(find_file, service.store, file_id, caller.tenant)).as_dict())

    @app.get("/v1/files/{file_id}/content", response_class=FileResponse, responses=BYTES)
    async def content(request: Request, file_id: str) -> Response:
        """Its bytes."""
        caller = _owner(request)
        found = await asyncio.to_thread(find_file, service.store, file_id, caller.tenant)
        path = await asyncio.to_thread(file_path, service.store, found)
        headers = {"X-Content-Type-Options": "nosniff"}
        return FileResponse(path, media_type="application/octet-stream", filename=found.name, headers=headers)

    @app.delete("/v1/files/{file_id}", responses=gives(DELETED))
    async def remove(request: Request, file_id: str) -> Response:
        """Remove a file."""
        caller = _owner(request)
        await asyncio.to_thread(delete_file, service.store, file_id, caller.tenant)
        return json_response({"id": file_id, "object": "file", "deleted": True})


BYTES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def page(rows: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """OpenAI's list of the first ``limit`` rows; one more says that there are more."""
    shown = rows[:limit]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": shown, **ends, "has_more": len(rows) > limit}


def _owner(request: Request) -> Caller:
    caller: Caller = request.scope["luthier.caller"]
    if not caller.may("admin"):  # who fills vector stores
        caller.require("batch")
    return caller


async def _receive(service: Service, request: Request, caller: Caller) -> FileRecord:
    config = service.config.batch
    most = int(config.max_file_mb * 1e6)
    count, size = await asyncio.to_thread(held_by, service.store, caller.tenant)
    room = int(config.max_stored_mb * 1e6) - size
    if count >= MOST_FILES or room <= 0:
        raise RequestError(
            f"your files take {size:,} bytes in {count:,} files, which is as much as may be kept; delete some",
            status=413,
            code="storage_full",
            headers={"Connection": "close"},
        )
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT_S):
            async with aclosing(_bounded(request, most, room)) as stream:
                form = await _parsed(request.headers, stream)
    except TimeoutError as error:
        raise RequestError(
            f"the file did not arrive within {UPLOAD_TIMEOUT_S:g} s",
            status=408,
            code="body_timeout",
            headers={"Connection": "close"},
        ) from error
    try:
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise RequestError("the form must have a part 'file' with a filename", param="file", code="missing_field")
        if purpose not in PURPOSES:
            raise RequestError(
                f"purpose must be one of {', '.join(PURPOSES)}; got {purpose!r}", param="purpose", code="invalid_value"
            )
        name = _checked_name(file.filename or "", str(purpose))
        keep = config.keep_days
        return await asyncio.to_thread(lambda: _keep(service, file.file, name, str(purpose), caller, keep))
    finally:
        await form.close()


async def _bounded(request: Request, most: int, room: int) -> AsyncGenerator[bytes]:
    """The body as it comes. Raises RequestError 413 as soon as it is known to be too large: before its first byte, when it says how long it is.

    Of one that is not much too large the rest is read, so that the client, which sends before it reads, gets to see the refusal.
    """
    limit = min(most, room) + _AROUND
    length = request.headers.get("content-length", "")
    said = int(length) if length.isascii() and length.isdigit() else 0
    size, too_large = 0, said > limit
    if said <= _DISCARD or not too_large:
        async for chunk in request.stream():
            size += len(chunk)
            too_large = too_large or size > limit
            if not too_large:
                yield chunk
            elif size > _DISCARD:
                break
    if too_large:
        why = f"a file must be at most {most:,} bytes" if most <= room else f"your files may take {room:,} more bytes"
        raise RequestError(
            f"{why}; this upload has {f'{said:,}' if said else f'more than {size:,}'}",
            status=413,
            param="file",
            code="file_too_large",
            headers={"Connection": "close"},
        )


async def _parsed(headers: Headers, stream: AsyncGenerator[bytes]) -> FormData:
    try:
        return await MultiPartParser(headers, stream, max_files=1, max_fields=8, max_part_size=_AROUND).parse()
    except MultiPartException as error:
        raise RequestError(f"the form cannot be read: {error.message}", code="invalid_form") from error
    except (KeyError, ValueError, UnicodeError) as error:  # no boundary, or text that is none
        raise RequestError(
            "the form cannot be read: its boundary or one of its names is broken", code="invalid_form"
        ) from error
    except ClientDisconnect as error:
        raise RequestError("the client left in the middle of the upload", status=400, code="client_gone") from error


def _checked_name(name: str, purpose: str) -> str:
    """The name of a file, which is shown and never used as a path."""
    if not name or len(name) > 255 or not name.isprintable() or PurePosixPath(name.replace("\\", "/")).name != name:
        raise RequestError(
            f"filename must be 1 to 255 printable characters and no path; got {name[:300]!r}",
            param="file",
            code="invalid_filename",
        )
    if purpose == "batch" and not name.lower().endswith(".jsonl"):
        raise RequestError(
            f"files for batches must be called *.jsonl; got {name!r}", param="file", code="invalid_filename"
        )
    return name


def _keep(service: Service, source: BinaryIO, name: str, purpose: str, caller: Caller, keep_days: float) -> FileRecord:
    with receiving(service.store) as path:
        _copy(source, path, text=purpose == "batch")
        return keep_file(
            service.store,
            path,
            tenant=caller.tenant,
            name=name,
            purpose=purpose,
            key_id=caller.key_id,
            keep_days=keep_days,
        )


def _copy(source: BinaryIO, path: Path, *, text: bool) -> None:
    """Write what is read to ``path``. Raises RequestError for no bytes at all, and for ``text`` that is no UTF-8."""
    decoder, size = codecs.getincrementaldecoder("utf-8")(), 0
    source.seek(0)
    with path.open("wb") as file:
        try:
            while block := source.read(_BLOCK):
                if text:
                    decoder.decode(block)
                size += file.write(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise RequestError(
                f"the file must be UTF-8 text; {error.reason} at about byte {size + error.start:,}",
                param="file",
                code="invalid_file",
            ) from error
    if not size:
        raise RequestError("the file is empty", param="file", code="invalid_file")
