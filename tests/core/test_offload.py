"""The second process that makes and writes objects."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pytest

from imbrace_lake.errors import ObjectExists, StoreError
from imbrace_lake.export.run import RunContext, RunSummary
from imbrace_lake.store import offload
from imbrace_lake.store.contract import Body, LazyBody
from imbrace_lake.store.factory import Store, open_store
from imbrace_lake.store.local import LocalStore
from imbrace_lake.store.offload import WorkerDied, WorkerProcess
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.lake_runs import run_once, settings_for
from tests.core.s3_servers import options_for

pytestmark = pytest.mark.slow

T = TypeVar("T")

BODY = b"whatever it is " * 1_000


def portable(text: bytes = BODY) -> LazyBody:
    return LazyBody(partial(bytes, text), is_portable=True)


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "_cores", lambda: 2)


def helped(work: Callable[[WorkerProcess], Awaitable[T]]) -> T:
    """Run with a process that is ready."""

    async def run() -> T:
        one = WorkerProcess(after=1)
        try:
            await until_ready(one)
            return await work(one)
        finally:
            await one.close()

    return asyncio.run(run())


async def until_ready(one: WorkerProcess) -> None:
    async with asyncio.timeout(60):
        while not one.accepts(portable()):  # noqa: ASYNC110 - it says nothing when it is ready
            await asyncio.sleep(0.01)


def test_work_is_done_in_another_process() -> None:
    assert helped(lambda one: one.run(os.getpid)) != os.getpid()


def test_many_calls_at_once_get_each_their_own_answer() -> None:
    async def work(one: WorkerProcess) -> list[bytes]:
        return await asyncio.gather(*(one.run(bytes, number) for number in range(500)))

    assert [*map(len, helped(work))] == [*range(500)]


def test_megabytes_come_whole() -> None:
    body = os.urandom(5_000_000)

    assert helped(lambda one: one.run(bytes, body)) == body


def test_what_is_raised_there_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        helped(lambda one: one.run(divmod, 1, 0))


class Unpicklable(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def raise_unpicklable() -> None:
    raise Unpicklable(1, 2)


def test_an_error_that_cannot_be_brought_over_is_reported_by_its_text() -> None:
    with pytest.raises(RuntimeError, match="Unpicklable: 1 and 2"):
        helped(lambda one: one.run(raise_unpicklable))


def test_a_process_that_dies_is_reported_to_all_callers_and_not_asked_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work(one: WorkerProcess) -> None:
        process = await one.run(os.getpid)
        waiting = asyncio.ensure_future(one.run(time.sleep, 60))
        await asyncio.sleep(0.1)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            await waiting
        assert not one.accepts(portable())
        with pytest.raises(WorkerDied):
            await one.run(os.getpid)

    with caplog.at_level(logging.WARNING):
        helped(work)

    assert "goes on alone" in caplog.text


@pytest.mark.parametrize("stop_after_seconds", [0.0, 0.5])
def test_a_process_that_hangs_is_ended_and_all_callers_are_informed(
    stop_after_seconds: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(offload, "SILENT_SECONDS", 3.0)

    async def work(one: WorkerProcess) -> int:
        process = await one.run(os.getpid)
        waiting = [asyncio.ensure_future(one.run(time.sleep, 60)) for _ in range(3)]
        await asyncio.sleep(stop_after_seconds)
        os.kill(process, signal.SIGSTOP)
        async with asyncio.timeout(30):
            for each in waiting:
                with pytest.raises(WorkerDied):
                    await each
        assert not one.accepts(portable())
        return process

    process = helped(work)

    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert "has not reacted for 3 s and is ended" in caplog.text


def count_for(seconds: float) -> int:
    """Keep the interpreter busy."""
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        count += 1
    return count


@pytest.mark.parametrize("slow", [time.sleep, count_for])
def test_a_process_that_is_slow_is_left_alone(
    slow: Callable[[float], object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(offload, "SILENT_SECONDS", 3.0)

    async def work(one: WorkerProcess) -> int:
        await one.run(slow, 6.0)
        return await one.run(abs, -3)

    assert helped(work) == 3
    assert "not reacted" not in caplog.text


def test_a_loop_that_was_blocked_for_long_blames_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(offload, "SILENT_SECONDS", 3.0)

    async def work(one: WorkerProcess) -> int:
        time.sleep(5)  # noqa: ASYNC251 - that is what is tested
        return await one.run(abs, -3)

    assert helped(work) == 3
    assert "not reacted" not in caplog.text


def test_an_answer_that_nobody_waits_for_any_more_disturbs_nobody() -> None:
    async def work(one: WorkerProcess) -> int:
        waiting = asyncio.ensure_future(one.run(time.sleep, 0.2))
        await asyncio.sleep(0.05)
        waiting.cancel()
        return await one.run(abs, -3)

    assert helped(work) == 3


def test_it_ends_with_the_process_that_it_helps() -> None:
    async def work(one: WorkerProcess) -> int:
        return await one.run(os.getpid)

    process = helped(work)

    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_disk_that_is_slow_is_written_by_several_threads() -> None:
    async def work(one: WorkerProcess) -> float:
        for _ in range(offload.LOOKED_AT):
            await one.run(time.sleep, 2 * offload.SLOW_SECONDS)
        began = time.monotonic()
        await asyncio.gather(*(one.run(time.sleep, 0.5) for _ in range(8)))
        return time.monotonic() - began

    # One after the other they take four seconds.
    assert helped(work) < 3.5


@pytest.mark.parametrize(
    ("body", "cores"),
    [
        (LazyBody(lambda: BODY), 2),
        (LazyBody(partial(bytes, BODY)), 2),
        (BODY, 2),
        (Path(), 2),
        (portable(), 1),
    ],
)
def test_what_cannot_be_sent_and_what_has_no_core_starts_no_process(
    body: Body, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "_cores", lambda: cores)

    async def run() -> bool:
        one = WorkerProcess(after=1)
        taken = [one.accepts(body) for _ in range(3)]
        is_started = one._starting is not None
        await one.close()
        return is_started or any(taken)

    assert not asyncio.run(run())


# -- the stores -----------------------------------------------------------------------------------


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path))
    options = options_for(request.getfixturevalue("s3"))
    return open_store(f"s3://{request.getfixturevalue('bucket')}/{uuid4().hex}", options)


def with_helper(store: Store, work: Callable[[WorkerProcess], Awaitable[T]]) -> T:
    async def run() -> T:
        async with store:
            one = WorkerProcess(after=1)
            store._worker = one  # type: ignore[attr-defined]
            await until_ready(one)
            return await work(one)

    return asyncio.run(run())


def test_an_object_made_and_written_there_is_that_of_here(store: Store) -> None:
    async def work(one: WorkerProcess) -> None:
        body = portable()
        stored = await store.create("a/b", body)
        assert stored == await store.head("a/b")
        assert await store.get("a/b") == BODY
        assert body.sha256 == sha256(BODY).hexdigest()
        with pytest.raises(ObjectExists):
            await store.create("a/b", portable(b"other"))
        newer = await store.update("a/b", portable(b"newer"), stored.etag)
        assert await store.get("a/b") == b"newer"
        assert newer == await store.head("a/b")
        plain = await store.overwrite("a/b", b"plain")
        assert (await store.get("a/b"), plain) == (b"plain", await store.head("a/b"))
        await store.delete("a/b")
        await store.delete("a/b")
        assert await store.head("a/b") is None

    with_helper(store, work)


def test_an_object_is_written_here_when_the_other_process_is_lost(store: Store) -> None:
    async def work(one: WorkerProcess) -> None:
        os.kill(await one.run(os.getpid), signal.SIGSTOP)
        writing = asyncio.ensure_future(store.create("a", body := portable()))
        await asyncio.sleep(0.1)
        assert one._process is not None
        one._process.kill()
        await writing
        await store.overwrite("b", b"another")
        await store.delete("b")
        assert [one.key for one in await store.list("")] == ["a"]
        assert await store.get("a") == BODY
        assert body.sha256 == sha256(BODY).hexdigest()

    with_helper(store, work)


def test_every_object_is_written_although_the_other_process_hangs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "SILENT_SECONDS", 3.0)

    async def work(one: WorkerProcess) -> None:
        os.kill(await one.run(os.getpid), signal.SIGSTOP)
        names = [f"conv-{number:02}" for number in range(20)]
        async with asyncio.timeout(60):
            await asyncio.gather(*(store.create(name, portable(name.encode())) for name in names))
            await store.create("later", portable())
        for name in names:
            assert await store.get(name) == name.encode()
        assert [one.key for one in await store.list("")] == [*names, "later"]

    with_helper(store, work)


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_run_whose_second_process_hangs_or_dies_completes(
    how: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "SILENT_SECONDS", 3.0)
    tasks: list[asyncio.Task[None]] = []

    async def disturb(one: WorkerProcess) -> None:
        while not one.is_ready:  # noqa: ASYNC110 - it says nothing when it is ready
            await asyncio.sleep(0.01)
        assert one._process is not None
        one._process.send_signal(how)

    def prepare(run: RunContext) -> None:
        tasks.append(asyncio.create_task(disturb(run.lake.store._worker)))  # type: ignore[attr-defined]

    options = SandboxOptions(conversations=150, messages_mean=3, latency_seconds=0.3)
    with Sandbox(options) as box:
        settings = settings_for(box, str(tmp_path / "lake"), max_in_flight=8)

        async def export() -> RunSummary:
            async with asyncio.timeout(120):
                return await run_once(settings, box.conversations, prepare=prepare)

        summary = asyncio.run(export())

    assert tasks[0].done(), "the second process was not there in time to be disturbed"
    assert summary.status == "complete"
    assert summary.totals.conversations == {"complete": 150}


def test_a_disk_that_refuses_there_is_explained_as_here(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)

    async def work(one: WorkerProcess) -> None:
        (tmp_path / "a").write_bytes(b"a file")
        with pytest.raises(StoreError, match="is a file where the lake needs a folder"):
            await store.create("a/b", portable())

    with_helper(store, work)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_the_process_has_none_of_the_users_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "IMBRACE_TOKEN",
        "IMBRACE_PHONE_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "AZURE_STORAGE_KEY",
        "MY_KEY",
    ):
        monkeypatch.setenv(name, "the secret of this test")

    seen = helped(lambda one: one.run(Path("/proc/self/environ").read_text))

    assert "PATH=" in seen
    assert "the secret of this test" not in seen
