"""The environment variables of the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def restored_environment() -> Iterator[None]:
    """Restore the environment variables afterwards.

    Only those that differ are set: C code in other threads can read the environment meanwhile, and crashes
    when `setenv` moves it. `patch.dict(os.environ)` deletes and sets all of them.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
