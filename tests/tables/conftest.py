"""A compacted lake, which modules with another one replace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.lake_runs import Bench
from tests.tables.lakes import compact_all


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Sandbox(SandboxOptions(conversations=2, sizes=(3, 40))) as box:
        made = Bench(box, str(tmp_path / "lake"))
        made.run()
        compact_all(made)
        yield made
