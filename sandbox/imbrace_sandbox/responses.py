"""Responses: send an answer, completely or not."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace

from aiohttp import web

from imbrace_sandbox.answers import Answer


def compressed(answer: Answer, headers: dict[str, str], request: web.Request, coding: str) -> Answer:
    """Compress the body of an answer if the client accepts that, and name the coding in the headers."""
    name = coding.removeprefix("raw-")
    accepted = request.headers.get("accept-encoding", "")
    if coding == "none" or name not in {each.strip() for each in accepted.split(",")}:
        return answer
    headers["content-encoding"] = name
    wbits = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS, "raw-deflate": -zlib.MAX_WBITS}[coding]
    compressor = zlib.compressobj(wbits=wbits)
    return replace(answer, body=compressor.compress(answer.body) + compressor.flush())


def respond(answer: Answer, headers: dict[str, str]) -> web.Response:
    """Send a complete answer."""
    if answer.location is not None:
        headers = {**headers, "location": answer.location}
    return web.Response(
        body=answer.body, status=answer.status, content_type=answer.content_type, headers=headers
    )


def _transport(request: web.Request) -> asyncio.Transport:
    # None only after the client disconnected, and then aiohttp has cancelled this handler.
    assert request.transport is not None  # noqa: S101 - narrows for the type checker
    return request.transport


def drop(request: web.Request) -> web.Response:
    """End the connection before any byte of an answer."""
    _transport(request).abort()
    # Never sent: aiohttp needs a response, and the connection is closed.
    return web.Response()


async def stall(seconds: float) -> None:
    """Wait for a time, or until the client or the server gives up."""
    if seconds:
        await asyncio.sleep(seconds)
    else:
        await asyncio.Event().wait()


async def send_half(
    request: web.Request, answer: Answer, headers: dict[str, str], *, is_chunked: bool
) -> web.StreamResponse:
    """Send half of a body whose headers announce all of it; the caller does the rest.

    Clients detect a cut body by different code if it has a Content-Length and if it is chunked.
    """
    response = web.StreamResponse(status=answer.status, headers=headers)
    response.content_type = answer.content_type
    if is_chunked:
        response.enable_chunked_encoding()
    else:
        response.content_length = max(2, len(answer.body))
    await response.prepare(request)
    await response.write(answer.body[: len(answer.body) // 2] or b"{")
    return response


def cut(request: web.Request) -> None:
    """End the connection after the bytes that were already written."""
    _transport(request).close()


async def drip(
    request: web.Request, answer: Answer, headers: dict[str, str], seconds: float
) -> web.StreamResponse:
    """Send a body byte by byte, each before a read time-out."""
    response = web.StreamResponse(status=answer.status, headers=headers)
    response.content_type = answer.content_type
    response.content_length = len(answer.body)
    await response.prepare(request)
    for at in range(len(answer.body)):
        await response.write(answer.body[at : at + 1])
        await asyncio.sleep(seconds)
    return response
