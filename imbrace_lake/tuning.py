"""Settings of a process that does nothing but runs; the library itself changes none of them."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pyarrow as pa

# Names Arrow's allocator for a process. A value that somebody set is kept.
MEMORY_POOL_VARIABLE = "ARROW_DEFAULT_MEMORY_POOL"
# By the number that <malloc.h> gives the setting, and what it is set to.
_MMAP_THRESHOLD, LARGE_BLOCK_BYTES = -3, 1 << 16


@contextmanager
def tuned_process() -> Iterator[None]:
    """Tune this process for one run: for the command line and runs of a worker, which own their process."""
    _give_back_large_blocks()
    with _at_rest(), _frugal():
        yield


@contextmanager
def _at_rest() -> Iterator[None]:
    """Spare the garbage collector what the process has loaded by now: a look through it takes 0.1 s."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _frugal() -> Iterator[None]:
    """Let Arrow take its memory from the system.

    Its own allocators keep more of what was given back, 50 MB of 330, and are slower besides, by 4 % of
    a run of 1,000 conversations and 20 % of one conversation of a million messages (docs/benchmarks.md).
    """
    before = pa.default_memory_pool()
    if MEMORY_POOL_VARIABLE not in os.environ:
        pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def _give_back_large_blocks() -> None:
    """Let the C library return every large block to the system when it is freed, from now on.

    It learns from what is freed to keep blocks of up to 32 MB, and small ones between them then hold what
    a few large answers took: 629 MB instead of 409 for 34 conversations of 15 MB each.
    """
    if sys.platform == "linux":
        # Not every C library has it.
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
