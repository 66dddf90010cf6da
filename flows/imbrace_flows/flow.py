"""The base of our flows: an error in their parameters is shown by their state, and in no log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from prefect import Flow

P = ParamSpec("P")
R = TypeVar("R")

_validates_ours: ContextVar[bool] = ContextVar("_validates_ours", default=False)


class LakeFlow(Flow[P, R]):
    """A flow that keeps its parameters, which can contain phone numbers, out of logs."""

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Check the parameters as Prefect does, without its log line that repeats rejected values."""
        with _unrepeated():
            return super().validate_parameters(parameters)

    def with_options(self, *args: Any, **kwargs: Any) -> LakeFlow[P, R]:
        """Return a flow with other options, as Prefect does; it stays a `LakeFlow`."""
        changed = super().with_options(*args, **kwargs)
        changed.__class__ = LakeFlow
        return changed  # type: ignore[return-value] # it is one now


def flow(**options: Any) -> Callable[[Callable[P, R]], LakeFlow[P, R]]:
    """Make a function a flow, as Prefect's decorator does, whose name the `prefect` command looks for."""
    return lambda function: LakeFlow(function, **options)


def _is_shown(record: logging.LogRecord) -> bool:
    return not (_validates_ours.get() and "\nParameters: " in record.getMessage())


@contextmanager
def _unrepeated() -> Iterator[None]:
    # Added once and never removed, because another thread may be in this block.
    logging.getLogger("prefect.flows").addFilter(_is_shown)
    token = _validates_ours.set(True)
    try:
        yield
    finally:
        _validates_ours.reset(token)
