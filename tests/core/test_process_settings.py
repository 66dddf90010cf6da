"""Calls of the core leave no changed settings in the process of their caller."""

from __future__ import annotations

import asyncio
import csv
import gc
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from imbrace_lake.aws_login import quiet_aws
from imbrace_lake.errors import InputError
from imbrace_lake.phones.lists import read_phone_list
from imbrace_lake.tuning import MEMORY_POOL_VARIABLE, tuned_process
from tests.core.conftest import StartBox
from tests.core.lake_runs import settings_for
from tests.gateways import open_run

NUMBER = "+886911425977"
LOGIN = "botocore.credentials"


def test_a_list_with_long_cells_does_not_change_the_limit_of_csv(tmp_path: Path) -> None:
    before = csv.field_size_limit(1_000)
    try:
        (tmp_path / "n.csv").write_text(f"phone,note\n{NUMBER},{'x' * 2_000}\n")

        assert read_phone_list(tmp_path / "n.csv").valid == 1
        assert csv.field_size_limit() == 1_000
        (tmp_path / "broken.csv").write_text(f'phone,note\n{NUMBER},"x\n')
        with pytest.raises(InputError, match="not proper CSV"):
            read_phone_list(tmp_path / "broken.csv")
        assert csv.field_size_limit() == 1_000
    finally:
        csv.field_size_limit(before)


@pytest.mark.slow
def test_lists_with_long_cells_are_read_concurrently(tmp_path: Path) -> None:
    before = csv.field_size_limit(1_000)
    try:
        rows = f"{NUMBER},{'x' * 2_000}\n" * 3_000
        (tmp_path / "n.csv").write_text(f"phone,note\n{rows}")
        counts: list[int] = []

        def read() -> None:
            counts.append(read_phone_list(tmp_path / "n.csv").valid)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(counts) == 4
        assert csv.field_size_limit() == 1_000
    finally:
        csv.field_size_limit(before)


def test_only_the_logins_of_our_calls_are_kept_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(LOGIN)
    with caplog.at_level(logging.DEBUG):
        with quiet_aws(), quiet_aws():
            logger.error("ours")
            other = threading.Thread(target=logger.warning, args=("of another thread",))
            other.start()
            other.join()
        logger.warning("later")

    assert [record.getMessage() for record in caplog.records] == ["of another thread", "later"]
    assert logger.level == logging.NOTSET


@pytest.mark.slow
def test_no_log_of_any_level_has_a_credential_or_the_body_of_a_request() -> None:
    program = """
import asyncio, logging, os, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
from imbrace_lake.phones.lists import read_phone_list
from imbrace_lake.store.factory import open_store
from tests.core.s3_servers import FakeS3

async def write(server):
    async with open_store("s3://bucket/lake") as store:
        await store.create("phones/a", b"0911425977")
        await store.get("phones/a")

with FakeS3().running() as server:
    os.environ |= {"AWS_ENDPOINT_URL": server.endpoint_url, "AWS_ACCESS_KEY_ID": "a-secret-key"}
    os.environ |= {"AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_SESSION_TOKEN": "a-token"}
    server.objects["list.txt"] = b"0911425977"
    order = [lambda: read_phone_list("s3://bucket/list.txt", region="TW"), lambda: asyncio.run(write(server))]
    for step in order[:: int(sys.argv[1])]:
        step()
    assert len(server.asked) >= 3
logging.getLogger("botocore.endpoint").debug("of the caller")
"""
    for first in ("1", "-1"):
        shown = subprocess.run(
            [sys.executable, "-c", program, first], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        assert "of the caller" in shown
        assert not any(one in shown for one in ("a-secret", "a-token", "Signature", "0911425977", "phones/a"))


def test_a_run_of_the_library_does_not_change_garbage_collector_and_memory_pool(
    start: StartBox, tmp_path: Path, unfrozen: None
) -> None:
    box = start(conversations=1)

    def tuning() -> tuple[int, str]:
        return gc.get_freeze_count(), pa.default_memory_pool().backend_name

    before = tuning()

    async def look() -> tuple[int, str]:
        async with open_run(settings_for(box, str(tmp_path / "lake")), "run"):
            return tuning()

    assert asyncio.run(look()) == before


@pytest.mark.parametrize(("wish", "expected"), [(None, "system"), ("mimalloc", None)])
def test_a_tuned_process_takes_its_memory_from_the_system_unless_a_pool_is_set(
    monkeypatch: pytest.MonkeyPatch, unfrozen: None, wish: str | None, expected: str | None
) -> None:
    before = pa.default_memory_pool().backend_name
    if wish is None:
        monkeypatch.delenv(MEMORY_POOL_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(MEMORY_POOL_VARIABLE, wish)

    with tuned_process():
        assert pa.default_memory_pool().backend_name == (expected or before)
        assert gc.get_freeze_count() > 0

    assert pa.default_memory_pool().backend_name == before
    assert gc.get_freeze_count() == 0


def test_a_process_that_has_frozen_objects_keeps_these_alone(unfrozen: None) -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    new = [[] for _ in range(1_000)]  # type: list[list[int]]

    with tuned_process():
        inside = gc.get_freeze_count()

    # Frozen objects can end.
    assert frozen - len(new) < gc.get_freeze_count() <= inside <= frozen


def test_a_tuned_process_collects_garbage_as_often_as_usual_also_after_a_start_that_did_not() -> None:
    before = gc.get_threshold()
    gc.set_threshold(50_000)
    try:
        with tuned_process():
            assert gc.get_threshold() == (700, 10, 10)

        assert gc.get_threshold()[0] == 50_000
    finally:
        gc.set_threshold(*before)


@pytest.mark.parametrize("allocator", [*pa.supported_memory_backends(), "unknown"])
def test_a_tuned_process_has_the_allocator_that_it_asks_for_or_that_of_the_system(
    monkeypatch: pytest.MonkeyPatch, allocator: str
) -> None:
    monkeypatch.delenv(MEMORY_POOL_VARIABLE, raising=False)

    with tuned_process(allocator):
        expected = "system" if allocator == "unknown" else allocator
        assert pa.default_memory_pool().backend_name == expected


@pytest.mark.parametrize(("wish", "expected"), [(None, "jemalloc"), ("system", "system")])
def test_arrow_is_loaded_with_an_allocator_unless_the_environment_names_one(
    monkeypatch: pytest.MonkeyPatch, wish: str | None, expected: str
) -> None:
    if wish is None:
        monkeypatch.delenv(MEMORY_POOL_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(MEMORY_POOL_VARIABLE, wish)
    program = """
import os
from imbrace_lake.tuning import MEMORY_POOL_VARIABLE, load_arrow

load_arrow("jemalloc")
import pyarrow as pa
print(os.environ.get(MEMORY_POOL_VARIABLE), pa.default_memory_pool().backend_name)
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == [str(wish), expected]


@pytest.mark.slow
def test_a_tuned_process_imports_pandas_only_for_its_data_frames() -> None:
    program = """
import sys
import pyarrow as pa
from imbrace_lake.tuning import tuned_process

with tuned_process():
    rows = pa.table({"number": pa.array([1])}).to_pylist()
    print("pandas" in sys.modules)
    print(type(pa.Table.from_pylist(rows).to_pandas()).__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "DataFrame"]
