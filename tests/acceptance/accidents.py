"""Unexpected exceptions, at random in the steps of a conversation, or in one step of a flow."""

from __future__ import annotations

import random
import ssl
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any
from unittest.mock import patch

import aiohttp
import httpx
import pyarrow as pa

# Each contains text that must never leave the run.
SECRET = "leaked-by-an-exception"

Raise = Callable[[], Exception]


def _http_error() -> Exception:
    request = httpx.Request("GET", f"http://gateway/links?phone_numbers={SECRET}", headers={"x": SECRET})
    return httpx.HTTPStatusError(SECRET, request=request, response=httpx.Response(500, text=SECRET))


def _chained() -> Exception:
    error = LookupError(SECRET)
    error.__cause__ = ValueError(SECRET)
    return error


EXCEPTIONS: tuple[Raise, ...] = (
    lambda: RuntimeError(SECRET),
    lambda: RecursionError(SECRET),
    lambda: MemoryError(),
    lambda: KeyError(SECRET),
    lambda: UnicodeEncodeError("utf-8", SECRET, 0, 1, SECRET),
    lambda: aiohttp.ClientPayloadError(SECRET),
    lambda: pa.ArrowInvalid(SECRET),
    lambda: OSError(5, SECRET),
    lambda: ssl.SSLError(SECRET),
    lambda: TimeoutError(SECRET),
    lambda: AssertionError(SECRET),
    lambda: StopAsyncIteration(SECRET),
    lambda: ExceptionGroup(SECRET, [ValueError(SECRET)]),
    _http_error,
    _chained,
)


def install(seed: int, share: float) -> Callable[[], None]:
    """Make a share of the calls of each step raise.

    Args:
        seed: The seed of the choice of calls and exceptions.
        share: The share of calls that raise, 0 to 1.

    Returns:
        A function that restores the originals.
    """
    from imbrace_lake.export import conversation
    from imbrace_lake.export.recovery import ChunkJournal
    from imbrace_lake.gateway import client
    from imbrace_lake.lake.lake import Lake

    chance = random.Random(seed)
    steps: tuple[tuple[Any, str], ...] = (
        (client.GatewayClient, "get_page"),
        (client, "parse_page"),
        (conversation, "rows_of_page"),
        (conversation, "content_hash"),
        (Lake, "add_part"),
        (conversation, "publish"),
        (ChunkJournal, "_append"),
    )
    before = [(owner, name, getattr(owner, name)) for owner, name in steps]
    for owner, name, function in before:
        setattr(owner, name, _failing(function, chance, share))

    def end() -> None:
        for owner, name, function in before:
            setattr(owner, name, function)

    return end


def break_step(name: str, number: int) -> Callable[[], None]:
    """Make a function raise an exception on each call.

    Args:
        name: The name of the function, with its module.
        number: The number of the exception.

    Returns:
        A function that restores the originals.
    """

    def fail(*arguments: object, **options: object) -> None:
        raise EXCEPTIONS[number]()

    replaced = patch(name, fail)
    replaced.start()
    return replaced.stop


def _failing(
    function: Callable[..., Any], chance: random.Random, share: float
) -> Callable[..., Any | Awaitable[Any]]:
    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if chance.random() < share:
            raise chance.choice(EXCEPTIONS)()
        return function(*arguments, **options)

    return call
