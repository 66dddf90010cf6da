"""The order of a part's rows, and which version of a message stays of those that were read."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def in_order(table: pa.Table) -> pa.Table:
    """Rows as a part has them: `created_at`, then `message_id`, oldest first; without a time last."""
    if _is_in_order(table):
        # Nearly always, and a copy of all columns is a tenth of what is done with rows.
        return table.combine_chunks()
    order = pc.sort_indices(table, sort_keys=[("created_at", "ascending"), ("message_id", "ascending")])
    return table.take(order).combine_chunks()


def _is_in_order(table: pa.Table) -> bool:
    times = table.column("created_at")
    if times.null_count:
        return False
    values = times.cast(pa.int64()).to_numpy()
    if (values[1:] < values[:-1]).any():
        return False
    ids = table.column("message_id")
    return all(
        ids[index].as_py() <= ids[index + 1].as_py()
        for index in np.flatnonzero(values[1:] == values[:-1]).tolist()
    )


def without_repeats(table: pa.Table, *, is_latest_first: bool = False) -> pa.Table:
    """Each message once, in the version that was updated last, or else read last.

    Args:
        table: Rows in the order in which they were read.
        is_latest_first: They are in the reverse order.
    """
    ids = table.column("message_id")
    if pc.count_distinct(ids).as_py() == len(ids):
        return table
    message = ids.combine_chunks().dictionary_encode().indices.to_numpy()
    updated = table.column("updated_at").cast(pa.int64()).fill_null(0).to_numpy()
    read = np.arange(len(ids))
    # Message by message, the version that counts last.
    order = np.lexsort((-read if is_latest_first else read, updated, message))
    is_last = np.append(message[order][1:] != message[order][:-1], True)
    return table.take(np.sort(order[is_last]))
