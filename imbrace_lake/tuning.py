"""Tune a process that only executes runs; the library itself changes none of these settings."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Selects Arrow's allocator; a value that is set already is kept.
MEMORY_POOL_VARIABLE = "ARROW_DEFAULT_MEMORY_POOL"
# For compactions. With the system's allocator, the large buffers of table files took a quarter more CPU time,
# and the free memory between them grew with each step.
TABLE_ALLOCATOR = "jemalloc"
# CPython's own thresholds; a program may have raised them while it loaded its modules.
_COLLECT_AFTER = (700, 10, 10)
# How long jemalloc keeps freed memory, and Arrow's own setting. With Arrow's, a compaction takes up to 50 MB
# more; with 0, one after edits takes a fifth more CPU time.
_KEPT_MS, _ARROWS_KEPT_MS = 100, 1_000
# The number of the setting in <malloc.h>, and its value here.
_MMAP_THRESHOLD, LARGE_BLOCK_BYTES = -3, 1 << 16


class _WithoutPandas:
    """An importer that finds everything but pandas."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Raise an error for pandas, and leave all other modules to the next importers."""
        if name == "pandas":
            raise ModuleNotFoundError(name)


def load_arrow(allocator: str) -> None:
    """Load Arrow with an allocator, unless it is loaded already or the environment names an allocator.

    What Arrow uses to encode and decode Parquet files is chosen when it is loaded, and `tuned_process` cannot
    change it. Two allocators each keep free memory: a compaction took 30 MB more.
    """
    is_named = MEMORY_POOL_VARIABLE in os.environ
    os.environ.setdefault(MEMORY_POOL_VARIABLE, allocator)
    try:
        importlib.import_module("pyarrow")
    finally:
        if not is_named:
            del os.environ[MEMORY_POOL_VARIABLE]


@contextmanager
def tuned_process(allocator: str = "system") -> Iterator[None]:
    """Tune this process for one run; for the command line and worker runs, which own their process.

    Args:
        allocator: Arrow's allocator, if Arrow has it and the environment names none; else the system's.
    """
    import pyarrow as pa

    # By default the C library keeps freed blocks of up to 32 MB, and small blocks between them then keep the
    # memory of a few large answers: 629 MB instead of 409 for 34 conversations of 15 MB each.
    if sys.platform == "linux":
        # Not every C library has `mallopt`.
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
    # Arrow's first array imports pandas if it can, which takes 0.2 s and 45 MB. If it cannot, only Arrow's
    # methods for pandas try again.
    sys.meta_path.insert(0, _WithoutPandas)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(_WithoutPandas)
    # Arrow's own allocators return less memory (they keep 50 MB of 330) and are slower, by 4 % in a run of
    # 1,000 conversations and 20 % in one conversation of a million messages (docs/benchmarks.md).
    pool = pa.default_memory_pool()
    if MEMORY_POOL_VARIABLE not in os.environ:
        is_built_in = allocator in pa.supported_memory_backends()
        pa.set_memory_pool(getattr(pa, f"{allocator if is_built_in else 'system'}_memory_pool")())
    is_jemalloc = pa.default_memory_pool().backend_name == "jemalloc"
    if is_jemalloc:
        pa.jemalloc_set_decay_ms(_KEPT_MS)
    # A full garbage collection of the objects that are loaded by now takes 0.1 s. What the process itself has
    # frozen stays as it is, because the collector cannot give back only ours.
    is_ours = gc.get_freeze_count() == 0
    if is_ours:
        gc.freeze()
    threshold = gc.get_threshold()
    gc.set_threshold(*_COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        if is_ours:
            gc.unfreeze()
        if is_jemalloc:
            pa.jemalloc_set_decay_ms(_ARROWS_KEPT_MS)
        pa.set_memory_pool(pool)
