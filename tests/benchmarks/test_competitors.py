"""Competitors do the job they are compared by, and are measured."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from benchmarks.comparison import run_checked
from benchmarks.competitors import core, open_competitors, script
from benchmarks.expected import Expected
from benchmarks.gateway import FakeGateway, fake_gateway
from benchmarks.peers import peers_python
from benchmarks.revisions import checked_out
from benchmarks.runner import Competitor, check, run
from tests.acceptance.scale import IS_FULL

pytestmark = pytest.mark.slow

# What depends on the time and the run.
OWN = ["first_seen_at", "last_changed_at", "run_id"]


@pytest.fixture(scope="module")
def gateway() -> Iterator[FakeGateway]:
    with fake_gateway(conversations=3, sizes=(120, 0), messages_mean=10.0) as running:
        yield running


@pytest.mark.parametrize("is_whole", [False, True] if IS_FULL else [True])
def test_a_competitor_exports_every_message_and_its_cost_is_measured(
    gateway: FakeGateway, tmp_path: Path, *, is_whole: bool
) -> None:
    names = ["script", "script-nine", "script-fsync", "core"]
    with open_competitors(names) as competitors:
        rounds = [run_checked(each, gateway, str(tmp_path), is_whole=is_whole) for each in competitors]

    assert [each.result for each in rounds] == ["complete"] * len(names)
    # One for the numbers, one per page.
    assert [each.requests for each in rounds] == [7] * len(names)
    assert all(each.metrics.cpu_seconds > 0 for each in rounds)
    assert all(each.memory_bytes > 50e6 for each in rounds)
    # A whole process also imports Arrow and aiohttp.
    assert all((each.metrics.cpu_seconds > 0.3) is is_whole for each in rounds[:3])


def test_the_script_writes_the_rows_of_the_lake(gateway: FakeGateway, tmp_path: Path) -> None:
    for competitor in (script("script"), core()):
        run(competitor, gateway, str(tmp_path / competitor.name))

    ours, theirs = (
        ds.dataset(tmp_path / folder, format="parquet", partitioning=None).to_table().drop_columns(OWN)
        for folder in ("core, no Prefect/messages", "script")
    )

    order = [("conversation_id", "ascending"), ("message_id", "ascending")]
    assert theirs.sort_by(order).to_pylist() == ours.sort_by(order).to_pylist()


def test_a_command_that_exports_nothing_is_measured_and_has_no_verdict(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    nothing = Competitor("nothing", (sys.executable, "-c", "pass"), None, needs_whole=True)

    served = Expected.unmoved(gateway.message_ids)

    one = run(nothing, gateway, str(tmp_path), is_whole=True)

    assert (one.requests, check(nothing, str(tmp_path), served)) == (0, None)
    assert one.metrics.seconds > 0


def test_a_competitor_that_fails_ends_the_benchmark(gateway: FakeGateway, tmp_path: Path) -> None:
    failing = Competitor("failing", (sys.executable, "-c", "raise SystemExit(7)"))

    with pytest.raises(SystemExit, match="failing ended with status 7"):
        run(failing, gateway, str(tmp_path))


def test_an_environment_that_has_what_is_listed_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("# nothing\n")
    folder = tmp_path / "environment"
    # Without uv on the PATH, pip makes it.
    monkeypatch.setenv("PATH", "")
    python = peers_python(folder, wanted)
    (folder / "mark").touch()

    assert peers_python(folder, wanted) == python
    assert (folder / "mark").exists()

    wanted.write_text("# something else\n")
    peers_python(folder, wanted)
    assert not (folder / "mark").exists()


def test_a_revision_is_checked_out_until_the_comparison_ends() -> None:
    with checked_out("HEAD") as tree:
        assert (tree / "pyproject.toml").exists()

    assert not tree.exists()
