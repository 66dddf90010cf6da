"""What a reader finds in a lake."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.dataset as ds


def messages(lake: Path) -> Counter[str]:
    """The number of messages of each conversation; empty before there is a lake."""
    if not (lake / "messages").is_dir():
        return Counter()
    table = ds.dataset(lake / "messages").to_table(columns=["conversation_id"])
    return Counter(table.column(0).to_pylist())
