"""What a table records about the parts that were read into it."""

from __future__ import annotations

from imbrace_lake.lake.lake import Part
from imbrace_lake.tables.state import ReadPart, TableState

FOLDER = "messages/org=o/conv=c"


def test_a_part_that_was_replaced_by_one_of_the_same_size_is_new() -> None:
    part = Part(f"{FOLDER}/part-00000.parquet", 1_000, sha256="0" * 16, etag="first")
    state = TableState().with_folders({FOLDER: [ReadPart(part, {1: (1, 2, 3, 1, 2, 3)})]})

    assert not state.changes([part]).folders
    for other in (Part(part.key, 1_000, etag="second"), Part(part.key, 1_001, etag="first")):
        assert state.changes([other]).new == {part.key}
