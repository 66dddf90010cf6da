"""Digests of messages, and the content hash of a set of messages, which does not depend on their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from imbrace_lake.gateway.exact_json import write
from imbrace_lake.gateway.models import Item

# A column that rows of a walk have in memory, and that is not written.
DIGEST = "digest"
# With this option orjson rejects objects with repeated keys, which it would write with a loss.
EXACT = orjson.OPT_PASSTHROUGH_SUBCLASS
# The content hash of no messages.
NO_HASH = "0" * 32


def item_digests(items: Sequence[Item]) -> list[bytes]:
    """Return the `item_digest` of each item."""
    try:
        bodies = [orjson.dumps(item, option=EXACT | orjson.OPT_SORT_KEYS) for item in items]
    except TypeError:
        return [item_digest(item) for item in items]
    return [blake2b(body, digest_size=16).digest() for body in bodies]


def item_digest(item: Mapping[str, Any]) -> bytes:
    """Return the 16-byte digest of an item, which does not depend on the order of its fields."""
    try:
        body = orjson.dumps(item, option=EXACT | orjson.OPT_SORT_KEYS)
    except TypeError:
        body = write(item, is_sorted=True).encode()
    return blake2b(body, digest_size=16).digest()


def content_hash(rows: pa.Table) -> str:
    """Return the content hash of a set of messages, 32 hexadecimal digits: the sum of their digests.

    A sum depends neither on the order of the messages nor on their division into parts, and the hash of a new
    part can be added to it. It protects against accidents, not against an attacker.
    """
    if not rows.num_rows:
        return NO_HASH
    low, high = np.add.reduce(digest_lanes(rows), dtype=np.uint64).tolist()
    return f"{low:016x}{high:016x}"


def digest_lanes(rows: pa.Table) -> np.ndarray[Any, Any]:
    """Return the column `DIGEST` of at least one row as two numbers of 64 bits each, without a copy."""
    digests = rows.column(DIGEST).combine_chunks()
    return np.frombuffer(digests.buffers()[1], "<u8").reshape(-1, 2)[digests.offset :][: len(digests)]


def hash_sum(added: Iterable[str], removed: Iterable[str] = ()) -> str:
    """Return the sum of some content hashes minus others: the hash of the resulting set of messages."""
    lanes = [0, 0]
    for sign, hashes in ((1, added), (-1, removed)):
        for one in hashes:
            lanes = [lanes[0] + sign * int(one[:16], 16), lanes[1] + sign * int(one[16:], 16)]
    return "".join(f"{lane % (1 << 64):016x}" for lane in lanes)
