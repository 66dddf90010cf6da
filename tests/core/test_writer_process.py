"""The second process that writes objects to a local disk."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import pytest

from imbrace_lake import writer_process
from imbrace_lake.errors import ObjectExists, StoreError
from imbrace_lake.export.run import RunContext, RunSummary
from imbrace_lake.store.local import LocalStore
from imbrace_lake.writer_process import RECENT_WRITES, SLOW_SECONDS, WriterProcess
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.lake_runs import run_once, settings_for

pytestmark = pytest.mark.slow

T = TypeVar("T")


def with_writer(work: Callable[[WriterProcess], Awaitable[T]]) -> T:
    async def run() -> T:
        async with asyncio.timeout(60), WriterProcess(start_after=1) as writer:
            assert await writer.run(None, os.getpid) != os.getpid()
            return await work(writer)

    return asyncio.run(run())


def test_each_of_many_calls_gets_its_own_result() -> None:
    body = os.urandom(5_000_000)

    async def work(writer: WriterProcess) -> list[bytes]:
        with ThreadPoolExecutor(1) as threads:
            calls = (writer.run(threads if number % 2 else None, bytes, number) for number in range(300))
            return [*await asyncio.gather(*calls), await writer.run(threads, bytes, body)]

    assert with_writer(work) == [*map(bytes, range(300)), body]


class First:
    """Returns the first character of a text, and counts how often it is pickled."""

    def __init__(self) -> None:
        self.pickled = 0

    def __call__(self, text: str) -> str:
        return text[0]

    def __reduce__(self) -> tuple[Callable[[int], object], tuple[int]]:
        self.pickled += 1
        return itemgetter, (0,)


def test_a_function_is_pickled_once_for_all_of_its_calls() -> None:
    first = First()

    async def work(writer: WriterProcess) -> list[str]:
        return [await writer.run(None, first, text) for text in ("ab", "cd", "ef")]

    assert with_writer(work) == ["a", "c", "e"]
    assert first.pickled == 1


def test_an_error_of_a_call_is_raised() -> None:
    async def work(writer: WriterProcess) -> None:
        with pytest.raises(ZeroDivisionError):
            await writer.run(None, divmod, 1, 0)

    with_writer(work)


class NotPickled(Exception):
    """An error that cannot be sent."""

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("not to be pickled")


class NotRead(Exception):
    """An error that cannot be received."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} {other}")


def fail_unsent(seconds: float) -> None:
    time.sleep(seconds)
    raise NotPickled


def fail_unread(seconds: float) -> None:
    time.sleep(seconds)
    raise NotRead(1, 2)


@pytest.mark.parametrize("seconds", [0.0, 2 * SLOW_SECONDS])
@pytest.mark.parametrize("fail", [fail_unsent, fail_unread])
def test_an_error_that_cannot_be_pickled_is_an_error_too(
    fail: Callable[[float], None], seconds: float
) -> None:
    async def work(writer: WriterProcess) -> list[object]:
        # On a slow disk, threads answer the later calls.
        calls = (writer.run(None, fail, seconds) for _ in range(RECENT_WRITES + 2))
        return await asyncio.gather(*calls, return_exceptions=True)

    found = with_writer(work)

    assert all(isinstance(one, RuntimeError | TypeError) for one in found)


def test_the_process_runs_no_module_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(tmp_path, "queue.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)

    async def work(writer: WriterProcess) -> int:
        return await writer.run(None, len, "four")

    assert with_writer(work) == 4


def test_a_cancelled_call_does_not_affect_others() -> None:
    async def work(writer: WriterProcess) -> int:
        with ThreadPoolExecutor(1) as threads:
            waiting = asyncio.ensure_future(writer.run(threads, time.sleep, 0.2))
            await asyncio.sleep(0.05)
            waiting.cancel()
            return await writer.run(threads, abs, -3)

    assert with_writer(work) == 3


def test_calls_that_wait_for_a_slow_disk_run_side_by_side() -> None:
    async def work(writer: WriterProcess) -> float:
        with ThreadPoolExecutor(1) as threads:
            # By these, the process sees that the disk is slow.
            for _ in range(RECENT_WRITES):
                await writer.run(threads, time.sleep, 2 * SLOW_SECONDS)
            began = time.monotonic()
            await asyncio.gather(*(writer.run(threads, time.sleep, 0.5) for _ in range(8)))
        return time.monotonic() - began

    # One after the other they take four seconds.
    assert with_writer(work) < 3


def test_a_short_run_starts_no_process() -> None:
    async def run() -> set[int]:
        async with WriterProcess(start_after=3) as writer:
            return {await writer.run(None, os.getpid) for _ in range(2)}

    assert asyncio.run(run()) == {os.getpid()}


def test_only_many_calls_in_a_short_time_start_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with WriterProcess(start_after=3) as writer:
            monkeypatch.setattr(writer_process, "WITHIN_SECONDS", 0.05)
            for _ in range(9):
                assert await writer.run(None, os.getpid) == os.getpid()
                await asyncio.sleep(0.03)
            monkeypatch.setattr(writer_process, "WITHIN_SECONDS", 600.0)
            assert await writer.run(None, os.getpid) != os.getpid()

    asyncio.run(run())


def test_the_process_ends_with_its_block() -> None:
    process = with_writer(lambda writer: writer.run(None, os.getpid))

    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_interrupting_both_processes_does_not_end_the_second() -> None:
    async def work(writer: WriterProcess) -> tuple[int, int]:
        process = await writer.run(None, os.getpid)
        os.kill(process, signal.SIGINT)
        await asyncio.sleep(0.1)
        return process, await writer.run(None, os.getpid)

    before, after = with_writer(work)
    assert before == after


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_the_process_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IMBRACE_TOKEN", "AWS_SECRET_ACCESS_KEY", "PREFECT_API_KEY", "MY_KEY"):
        monkeypatch.setenv(name, "the secret of this test")

    seen = with_writer(lambda writer: writer.run(None, Path("/proc/self/environ").read_text))

    assert "PATH=" in seen
    assert "the secret of this test" not in seen


def test_the_process_imports_neither_arrow_nor_an_http_client() -> None:
    code = (
        "import sys, imbrace_lake.writer_process, imbrace_lake.store.atomic_files;"
        "print(*({'pyarrow', 'numpy', 'pydantic', 'httpx', 'aiohttp'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "", "its start takes longer"


# -- objects --------------------------------------------------------------------------------------


@pytest.fixture
def _start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_process, "START_AFTER", 1)


async def process_of(store: LocalStore) -> int:
    assert store._writer is not None
    return await store._writer.run(None, os.getpid)


@pytest.mark.usefixtures("_start_at_once")
def test_an_object_that_the_process_writes_is_like_any_other(tmp_path: Path) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), LocalStore(tmp_path) as store:
            assert await process_of(store) != os.getpid()
            assert await store.create("a/b", b"1") == await store.head("a/b")
            assert await store.get("a/b") == b"1"
            with pytest.raises(ObjectExists):
                await store.create("a/b", b"2")
            with pytest.raises(StoreError, match="is a file where the lake needs a folder"):
                await store.create("a/b/c", b"3")
            assert [one.key for one in await store.list("")] == ["a/b"]

    asyncio.run(run())


@pytest.mark.usefixtures("_start_at_once")
def test_objects_are_written_although_the_process_is_killed(tmp_path: Path) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), LocalStore(tmp_path) as store:
            process = await process_of(store)
            os.kill(process, signal.SIGSTOP)
            writing = asyncio.gather(*(store.create(f"before/{number}", b"1") for number in range(9)))
            await asyncio.sleep(0.1)
            os.kill(process, signal.SIGKILL)
            await writing
            await store.create("after", b"1")
            assert await process_of(store) == os.getpid()
            assert len(await store.list("")) == 10

    asyncio.run(run())


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from imbrace_lake import writer_process
from imbrace_lake.store.local import LocalStore

writer_process.START_AFTER = 1

async def main():
    async with LocalStore(Path(sys.argv[1])) as store:
        process = await store._writer.run(None, os.getpid)
        print(process, flush=True)
        os.kill(process, signal.SIGSTOP)
        tasks = [asyncio.create_task(store.create(str(one), b"1")) for one in range(50)]
        await asyncio.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_a_killed_run_is_followed_by_no_writes(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    command = [sys.executable, "-c", KILLED, str(lake)]
    # Without a pipe for its errors, which the process that is stopped would keep open.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        process = int(killed.stdout.readline())
        assert killed.wait(60) == -signal.SIGKILL

    os.kill(process, signal.SIGCONT)
    while _is_running(process):
        time.sleep(0.01)

    assert [path for path in lake.rglob("*") if path.is_file()] == []


def test_where_no_process_can_be_started_this_one_does_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*args: object, **options: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    async def run() -> int:
        async with WriterProcess(start_after=1) as writer:
            return await writer.run(None, os.getpid)

    monkeypatch.setattr(subprocess, "Popen", cannot)

    # A socket that is left open would be a warning, and so an error.
    assert asyncio.run(run()) == os.getpid()


def test_a_call_of_which_only_the_beginning_arrives_is_not_made() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _, body = writer_process._framed(0, (pickle.dumps(abs), (-3,)))
        # The caller was killed in the middle of a call.
        ours.sendall(writer_process._HEADER.pack(0, len(body)) + body[:-1])
        ours.shutdown(socket.SHUT_WR)

        writer_process.serve(theirs, os.getppid())

        theirs.shutdown(socket.SHUT_WR)
        assert ours.recv(1) == b""


def _is_running(process: int) -> bool:
    """Return whether a process has not ended; one whose parent does not wait for it remains known."""
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_run_whose_second_process_is_killed_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_process, "WITHIN_SECONDS", 600.0)
    tasks: list[asyncio.Task[None]] = []

    async def kill(writer: WriterProcess) -> None:
        while not writer._is_ready:  # noqa: ASYNC110 - nothing reports this
            await asyncio.sleep(0.01)
        assert writer._process is not None
        writer._process.kill()

    def prepare(run: RunContext) -> None:
        assert isinstance(run.lake.store, LocalStore)
        assert run.lake.store._writer is not None
        tasks.append(asyncio.create_task(kill(run.lake.store._writer)))

    with Sandbox(SandboxOptions(conversations=150, messages_mean=3, latency_seconds=0.3)) as box:
        settings = settings_for(box, str(tmp_path / "lake"), max_in_flight=8)

        async def export() -> RunSummary:
            async with asyncio.timeout(120):
                return await run_once(settings, box.conversations, prepare=prepare)

        summary = asyncio.run(export())

    assert tasks[0].done(), "the second process did not start in time to be killed"
    assert summary.status == "complete"
    assert summary.totals.conversations == {"complete": 150}
