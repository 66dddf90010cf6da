"""A damaged ledger object does not stop an export; it is reported by name, with the way to repair it."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imbrace_lake.errors import DamagedObject, InputError, StoreError
from imbrace_lake.export.rerun import read_missed
from imbrace_lake.export.run import RunContext, RunSummary, utc_now
from imbrace_lake.lake.checkpoint import read_state
from imbrace_lake.lake.conversation_states import read_every_id, read_unrecorded
from imbrace_lake.lake.freshness import read_freshness
from imbrace_lake.lake.lake import Lake, open_lake, partition_key
from imbrace_lake.lake.ledger import HEADER, Journal, read_run
from imbrace_lake.lake.ledger_schema import PHONES, RunTotals, conversation_rows
from imbrace_lake.policy import Window
from imbrace_lake.store.atomic_files import AtomicFiles
from imbrace_lake.store.local import LocalStore
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.lake_runs import START, Bench
from tests.core.test_conversation_states import entry

pytestmark = pytest.mark.slow

Damage = Callable[[Path], Path]


def _bytes(change: Callable[[bytes], bytes]) -> Damage:
    def damage(path: Path) -> Path:
        body = path.read_bytes()
        path.unlink()
        path.write_bytes(change(body))
        return path

    return damage


def _flip(position: float) -> Damage:
    def flip(body: bytes) -> bytes:
        at = min(len(body) - 1, int(position * len(body)))
        return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]

    return _bytes(flip)


def _of_another_schema(path: Path) -> Path:
    """Write an object that matches its name but not the schema of a ledger."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"conversation_id": [1, 2], "else": ["a", "b"]}), sink)
    digest = sha256(sink.getvalue()).hexdigest()[:16]
    other = path.with_name(f"{path.stem.rpartition('-')[0]}-{digest}.parquet")
    path.unlink()
    other.write_bytes(sink.getvalue())
    return other


DAMAGES: dict[str, Damage] = {
    "first bit": _flip(0.0),
    "a bit in the middle": _flip(0.5),
    "last bit": _flip(1.0),
    "cut in half": _bytes(lambda body: body[: len(body) // 2]),
    "one byte short": _bytes(lambda body: body[:-1]),
    "empty": _bytes(lambda body: b""),
    "text": _bytes(lambda body: b"not what was written"),
    "zeros": _bytes(lambda body: bytes(len(body))),
    "nested JSON": _bytes(lambda body: b"[" * 100_000),
    "another schema": _of_another_schema,
}
FEW = ["a bit in the middle", "empty", "another schema"]


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("damage") / "lake"
    with Sandbox(SandboxOptions(conversations=0, sizes=(3, 40))) as box:
        bench = Bench(box, str(folder))
        # One lake in which the ledgers are read, and one with a checkpoint of them.
        bench.run()
        one = next(iter(box.conversations))
        box.edit(one, [box.truth(one)[-1]["_id"]])
        bench.run()
        shutil.copytree(folder, folder.with_name("with-checkpoint"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("imbrace_lake.lake.checkpoint.MAX_AFTER_CHECKPOINT", 1)
            Bench(box, str(folder.with_name("with-checkpoint")), now=bench.now).run()
        yield bench


@pytest.fixture
def bench(_made: Bench, tmp_path: Path) -> Bench:
    """Return a copy of a lake of two runs without a checkpoint."""
    shutil.copytree(_made.lake, tmp_path / "lake")
    return Bench(_made.box, str(tmp_path / "lake"), now=_made.now)


@pytest.fixture
def checked(_made: Bench, tmp_path: Path) -> Bench:
    """Return a copy of a lake of three runs, the last of which wrote a checkpoint."""
    shutil.copytree(Path(_made.lake).with_name("with-checkpoint"), tmp_path / "lake")
    return Bench(_made.box, str(tmp_path / "lake"), now=_made.now)


def newest(bench: Bench, folder: str) -> Path:
    return max(Path(bench.lake, folder).iterdir())


def key_of(bench: Bench, path: Path) -> str:
    return str(path.relative_to(bench.lake))


def run_and_see(bench: Bench) -> tuple[RunSummary, list[str]]:
    """Run again; return the summary, and the damaged objects that it reported."""
    runs: list[RunContext] = []
    summary = bench.run(prepare=runs.append)
    return summary, runs[0].damaged_objects


CASES = [
    *(("conversations", damage) for damage in DAMAGES),
    *(("shapes", damage) for damage in FEW),
    *(("phones", damage) for damage in FEW),
]


@pytest.mark.parametrize(("folder", "damage"), CASES)
def test_an_export_skips_a_damaged_ledger_object_and_reports_it(
    bench: Bench, folder: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def add_phones(lake: Lake) -> str:
        row = {"run_id": "r", "organization_id": "o", "position": 1, "status": "none"}
        return await Journal(lake, "r", START).add("phones", pa.Table.from_pylist([row], schema=PHONES))

    bench.look(add_phones)
    damaged = key_of(bench, DAMAGES[damage](newest(bench, folder)))

    summary, named = run_and_see(bench)

    assert summary.status == "complete"
    assert named == [damaged]
    assert sum(damaged in message for message in caplog.messages) == 1
    assert f"{damaged} is damaged and was skipped: " in caplog.text
    assert bench.differences() == {}
    assert bench.wrong_hashes() == []
    found = bench.verify()
    assert [one.name for one in found.differences if one.name == damaged]
    assert all("delete" in one.problem or "remove" in one.problem for one in found.differences)


@pytest.mark.parametrize("folder", ["runs", "revisions"])
@pytest.mark.parametrize("damage", FEW)
def test_verify_reports_damage_in_ledgers_that_no_export_reads(
    bench: Bench, folder: str, damage: str
) -> None:
    damaged = key_of(bench, DAMAGES[damage](newest(bench, folder)))

    summary, named = run_and_see(bench)

    assert (summary.status, named) == ("complete", [])
    assert damaged in [one.name for one in bench.verify().differences]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_written_again(
    checked: Bench, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imbrace_lake.lake.checkpoint.MAX_AFTER_CHECKPOINT", 1)
    damaged = key_of(checked, DAMAGES[damage](newest(checked, "checkpoints")))

    summary, named = run_and_see(checked)

    assert (summary.status, named) == ("complete", [damaged])
    assert summary.totals.conversations == {"unchanged": len(checked.box.conversations)}
    assert damaged != key_of(checked, newest(checked, "checkpoints"))
    assert checked.verify().is_sound
    assert run_and_see(checked)[1] == []


def test_a_restored_object_is_read_even_if_a_checkpoint_was_written_without_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imbrace_lake.lake.checkpoint.MAX_AFTER_CHECKPOINT", 1)
    kept = newest(bench, "conversations").read_bytes()
    damaged = DAMAGES["empty"](newest(bench, "conversations"))
    shutil.rmtree(Path(bench.lake, "messages"))  # nothing else lists the conversations

    async def ids(lake: Lake) -> list[str]:
        return (await read_state(lake, bench.box.options.organization_id)).ids()

    earlier = next(path for path in Path(bench.lake, "conversations").iterdir() if path != damaged)
    earlier.unlink()
    bench.run([])
    assert bench.look(ids) == []
    damaged.unlink()
    damaged.write_bytes(kept)

    assert sorted(bench.look(ids)) == sorted(bench.box.conversations)


def test_a_damaged_object_that_was_deleted_is_no_longer_reported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imbrace_lake.lake.checkpoint.MAX_AFTER_CHECKPOINT", 1)
    damaged = DAMAGES["text"](newest(bench, "conversations"))
    assert run_and_see(bench)[1] == [key_of(bench, damaged)]
    damaged.unlink()

    assert run_and_see(bench)[1] == []
    # As `verify` advises.
    (listed,) = bench.verify().differences
    run_id = damaged.name.removesuffix(".parquet")[17:-17]
    assert listed.name == key_of(bench, damaged)
    assert f"delete runs/*-{run_id}-*" in listed.problem
    for path in Path(bench.lake, "runs").glob(f"*-{run_id}-*"):
        path.unlink()
    assert bench.verify().is_sound


def test_an_object_deleted_between_listing_and_reading_is_reported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted = newest(bench, "conversations")
    real = LocalStore.get

    async def get(store: LocalStore, key: str) -> bytes:
        if key == key_of(bench, deleted):
            deleted.unlink(missing_ok=True)
        return await real(store, key)

    monkeypatch.setattr(LocalStore, "get", get)

    summary, named = run_and_see(bench)

    assert (summary.status, named) == ("complete", [key_of(bench, deleted)])


def test_an_object_with_a_read_error_is_reported_and_read_errors_of_all_objects_raise(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = {key_of(bench, newest(bench, "conversations"))}
    real = AtomicFiles.read

    def read(disk: AtomicFiles, key: str) -> bytes | None:
        if key in refused or (key == "lake.json" and "all" in refused and opened):
            raise PermissionError(13, "Permission denied", str(disk.root / key))
        return real(disk, key)

    opened: list[int] = []
    monkeypatch.setattr(AtomicFiles, "read", read)

    summary, named = run_and_see(bench)
    assert summary.status == "complete"
    assert {*named} == refused
    assert {one.name for one in bench.verify().differences} == refused

    async def read_all(lake: Lake) -> None:
        opened.append(1)
        await read_state(lake, "org")

    refused.add("all")
    with pytest.raises(StoreError, match="may not read"):
        bench.look(read_all)


def test_entries_with_the_earliest_and_the_latest_times_are_not_damage(bench: Bench) -> None:
    least = datetime(1, 1, 1, tzinfo=UTC)
    greatest = datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)
    odd = entry("odd", 1, parts=(), first_message_at=least, last_message_at=greatest)

    async def add(lake: Lake) -> None:
        await Journal(lake, "odd", START).add("conversations", conversation_rows([odd]))
        assert [*(await read_state(lake, "org")).states] == [odd]

    bench.look(add)

    assert bench.verify().is_sound


# -- parts ----------------------------------------------------------------------------------------


@pytest.fixture(params=["in memory", "in files"])
def position(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read parts into memory, and into files as if they were large."""
    if request.param == "in files":
        monkeypatch.setattr("imbrace_lake.lake.snapshot.EXPANSION", 10**9)


def first_part(bench: Bench, conversation_id: str) -> Path:
    organization = bench.box.options.organization_id
    return Path(bench.lake, partition_key(organization, conversation_id), "part-00000.parquet")


def contents(bench: Bench) -> dict[str, bytes]:
    return {key_of(bench, path): path.read_bytes() for path in Path(bench.lake).glob("messages/*/*/*")}


@pytest.mark.usefixtures("position")
@pytest.mark.parametrize("window", [None, Window(since=START)])
def test_a_part_in_the_folder_of_another_conversation_is_damage_and_nothing_is_written(
    bench: Bench, window: Window | None
) -> None:
    paths = [first_part(bench, one) for one in bench.box.conversations]
    first, second = [path.read_bytes() for path in paths]
    for path, body in zip(paths, (second, first), strict=True):
        path.write_bytes(body)
    swapped = contents(bench)

    summary = bench.run(window=window)

    assert summary.totals.conversations == {"failed": 2}
    reasons = {dead.conversation_id: str(dead.reason) for dead in summary.dead_letters}
    for path, one in zip(paths, bench.box.conversations, strict=True):
        assert reasons[one].endswith(
            f"{key_of(bench, path)} contains rows of another conversation: restore it from a copy, or delete"
            " it and export its conversation again"
        )
    assert contents(bench) == swapped
    assert len(bench.verify().differences) == 2
    for path in paths:
        path.unlink()
    assert bench.run().totals.conversations == {"complete": 2}
    assert bench.differences() == {}
    assert bench.verify().is_sound


@pytest.mark.parametrize("damage", ["cut in half", "empty", "text", "of another conversation"])
def test_a_damaged_part_that_no_ledger_records_costs_only_its_conversation(bench: Bench, damage: str) -> None:
    one, other = bench.box.conversations
    if damage in DAMAGES:
        DAMAGES[damage](first_part(bench, one))
    else:
        first_part(bench, one).write_bytes(first_part(bench, other).read_bytes())
    organization = bench.box.options.organization_id

    async def find(lake: Lake) -> set[str]:
        partitions = await lake.list_partitions(organization)
        return await read_unrecorded(lake, organization, partitions, set())

    # The export of the conversation reports the damage.
    assert bench.look(find) == {one, other}


@pytest.mark.usefixtures("position")
@pytest.mark.parametrize("damage", ["cut in half", "empty", "text"])
def test_the_advice_on_a_damaged_part_is_not_about_free_space(bench: Bench, damage: str) -> None:
    one = next(iter(bench.box.conversations))
    DAMAGES[damage](first_part(bench, one))
    bench.settings = {"rewalk_days": 0.0}

    summary = bench.run([one])

    assert summary.causes == {DamagedObject.advice: 1}


@pytest.mark.usefixtures("position")
@pytest.mark.parametrize("window", [None, Window(since=START)])
@pytest.mark.parametrize("is_recorded", [False, True])
def test_a_part_that_repeats_messages_of_another_one_is_damage_and_nothing_is_written(
    bench: Bench, is_recorded: bool, window: Window | None
) -> None:
    one = next(iter(bench.box.conversations))
    copy = first_part(bench, one).with_name("part-00001.parquet")
    shutil.copy(first_part(bench, one), copy)
    if is_recorded:
        # As earlier releases did.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("imbrace_lake.lake.snapshot.first_repeating", lambda parts: None)
            assert bench.run().status == "complete"
        bench.settings = {"rewalk_days": 0.0}
    before = contents(bench)

    summary = bench.run([one], window=window)

    (dead,) = summary.dead_letters
    assert str(dead.reason).endswith(
        f"{key_of(bench, copy)} repeats messages of an earlier part: delete it and export its conversation"
        " again"
    )
    assert contents(bench) == before
    if not is_recorded:
        found = bench.verify()
        assert [(one.name, one.problem) for one in found.differences] == [
            (
                key_of(bench, copy),
                "repeats messages of an earlier part: delete it, and run `imbrace-lake backfill"
                f" --conversation {one}`, which reads the conversation again",
            )
        ]
        assert found.unrecorded == 0
    copy.unlink()
    assert bench.run().status == "complete"
    assert bench.differences() == {}
    assert bench.verify().is_sound


# -- journals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "another schema"])
def test_a_damaged_journal_of_a_killed_run_stops_only_its_rerun(bench: Bench, damage: str) -> None:
    first, second = bench.box.conversations

    async def be_killed(lake: Lake) -> None:
        journal = Journal(lake, "killed", bench.now)
        await journal.note_entries("chunk-1", [entry(first, 1, parts=())])
        await journal.note_entries(
            "chunk-1-failed", [entry(second, 1, status="failed", is_dead_letter=True, parts=())]
        )

    bench.look(be_killed)
    note = next(Path(bench.lake).glob("journal/killed/conversations/chunk-1-failed-*"))
    key = key_of(bench, DAMAGES[damage](note))
    os.utime(note, (0, 0))
    os.utime(next(Path(bench.lake).glob("journal/killed/conversations/chunk-1-[!f]*")), (0, 0))

    summary, named = run_and_see(bench)

    assert summary.status == "complete"
    assert key in named
    assert bench.differences() == {}
    assert not Path(bench.lake, "journal", "killed").exists()
    with pytest.raises(DamagedObject, match="the failures of run killed are not known"):
        dead_letters(Path(bench.lake), "killed")
    (left,) = (one for one in bench.verify().differences if one.name.endswith(".damaged"))
    assert "export its list again" in left.problem
    Path(bench.lake, left.name).unlink()
    assert bench.verify().is_sound


@pytest.mark.parametrize(
    "header",
    [
        b"", b"{", b"[]", b"7", b"null", b"[" * 100_000, b"\xff\xfe", b"{}", b'{"run_id": 7}',
        b'{"run_id": "k", "organization_id": "o", "started_at": "x", "alive_at": "y"}',
        b'{"run_id": "k", "organization_id": "o", "started_at": "2026-01-01", "alive_at": "2026-01-01"}',
        b'{"run_id": "k", "organization_id": "o", "started_at": null, "alive_at": 7}',
        b'{"run_id": "k", "organization_id": "o", "started_at": "2026-01-01T00:00:00+00:00",'
        b' "alive_at": "2026-01-01T00:00:00+00:00", "pid": "x"}',
    ],
)  # fmt: skip
def test_a_damaged_header_of_a_journal_does_not_stop_later_runs(bench: Bench, header: bytes) -> None:
    one = next(iter(bench.box.conversations))

    async def be_killed(lake: Lake) -> None:
        await Journal(lake, "killed", bench.now).note_entries("chunk-1", [entry(one, 1, parts=())])

    bench.look(be_killed)
    Path(bench.lake, "journal", "killed", HEADER).write_bytes(header)
    for path in Path(bench.lake, "journal", "killed").rglob("*"):
        os.utime(path, (0, 0))

    assert bench.run().status == "complete"
    assert not Path(bench.lake, "journal", "killed").exists()
    assert bench.differences() == {}


# -- reruns ---------------------------------------------------------------------------------------


@pytest.fixture
def failed_run(tmp_path: Path) -> Path:
    """Make a lake with a run in which a conversation failed."""

    async def make() -> None:
        async with open_lake(str(tmp_path / "lake"), now=START) as lake:
            for run, status in (("run-1", "failed"), ("run-2", "complete")):
                journal = Journal(lake, run, START)
                dead = entry("a", 1, run_id=run, status=status, is_dead_letter=status == "failed")
                await journal.note_entries("x", [dead])
                row = {"run_id": run, "organization_id": "org", "status": "partial", "started_at": START}
                await journal.close(row, RunTotals())

    asyncio.run(make())
    return tmp_path / "lake"


def dead_letters(lake: Path, run_id: str) -> tuple[list[str], list[str]]:
    async def read() -> tuple[list[str], list[str]]:
        async with open_lake(str(lake), now=None) as opened:
            missed = await read_missed(
                opened, run_id, utc_now(), organization_id="org", tolerated_unreadable=0.0
            )
            return missed.conversation_ids, missed.phones

    return asyncio.run(read())


def of_run(lake: Path, folder: str, run_id: str) -> Path:
    return next(path for path in Path(lake, folder).iterdir() if f"-{run_id}-" in path.name)


@pytest.mark.parametrize("folder", ["conversations", "runs"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_rerun_of_a_run_with_damaged_objects_fails_and_reports_them(
    failed_run: Path, folder: str, damage: str
) -> None:
    damaged = DAMAGES[damage](of_run(failed_run, folder, "run-1"))

    with pytest.raises(DamagedObject, match=rf"failures of run run-1 .*{folder}/"):
        dead_letters(failed_run, "run-1")
    assert damaged.exists()


def test_a_rerun_of_a_run_with_a_missing_object_fails_and_reports_it(failed_run: Path) -> None:
    of_run(failed_run, "conversations", "run-1").unlink()

    with pytest.raises(DamagedObject, match="is missing: restore it from a copy"):
        dead_letters(failed_run, "run-1")


def test_a_rerun_reads_only_the_objects_of_its_run(failed_run: Path) -> None:
    DAMAGES["text"](of_run(failed_run, "conversations", "run-2"))
    DAMAGES["text"](of_run(failed_run, "runs", "run-2"))

    assert dead_letters(failed_run, "run-1") == (["a"], [])


@pytest.mark.parametrize("run_id", ["", ".", "..", "run", "1", "run-1-", "a/b", "*", "run-3", "\0"])
def test_an_unknown_run_id_is_an_error(failed_run: Path, run_id: str) -> None:
    with pytest.raises(InputError, match="has no run") as caught:
        dead_letters(failed_run, run_id)

    assert "check the id; a run that failed before it read anything" in str(caught.value)


# -- unusual files in a lake ----------------------------------------------------------------------


def _file(path: Path) -> None:
    path.write_text("odd")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as odd:
        # Names of sockets have at most about 100 bytes.
        odd.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _circle(path: Path) -> None:
    path.symlink_to(path.parent)


def _nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def _bad_name(path: Path) -> None:
    Path(os.fsdecode(os.fsencode(path) + b"\xff")).write_text("odd")


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("odd")


ODD: list[Callable[[Path], None]] = [_file, _pipe, _socket, _loop, _circle, _nowhere, _bad_name, _folder]


@pytest.mark.parametrize(
    "folder", ["messages", "conversations", "phones", "shapes", "runs", "journal", "checkpoints", "."]
)
def test_unusual_files_in_a_lake_stop_no_command(bench: Bench, folder: str) -> None:
    path = Path(bench.lake, folder)
    path.mkdir(exist_ok=True)
    for make in ODD:
        make(path / f"odd{make.__name__}")

    async def read(lake: Lake) -> Any:
        org = bench.box.options.organization_id
        state = await read_state(lake, org)
        await read_every_id(lake, org, await lake.list_partitions(org), state.ids())
        await read_run(lake, "conversations", "odd")
        return await read_freshness(lake, org, bench.now)

    async def in_time() -> None:
        async with asyncio.timeout(30):
            assert len(await asyncio.to_thread(bench.look, read)) == len(bench.box.conversations)
            assert (await asyncio.to_thread(bench.run)).status == "complete"
            found = await asyncio.to_thread(bench.verify)
            assert [one.name for one in found.differences if "odd" not in one.name] == []

    asyncio.run(in_time())


@pytest.mark.parametrize("folder", ["messages", "conversations", "journal", "checkpoints"])
@pytest.mark.parametrize("make", [_file, _pipe, _loop], ids=lambda make: make.__name__)
def test_an_unusual_file_instead_of_a_folder_is_reported_or_ignored(
    tmp_path: Path, folder: str, make: Callable[[Path], None]
) -> None:
    with Sandbox(SandboxOptions(conversations=0, sizes=(3,))) as box:
        bench = Bench(box, str(tmp_path))
        make(tmp_path / folder)

        try:
            summary = bench.run()
        except StoreError as exc:
            reasons = [str(exc)]
        else:
            reasons = [letter.reason for letter in summary.dead_letters]
            assert reasons or bench.differences() == {}
        assert all(f"{tmp_path}/{folder}" in reason for reason in reasons)


@pytest.mark.parametrize("make", [_pipe, _socket, _loop], ids=lambda make: make.__name__)
def test_an_unusual_file_instead_of_the_marker_is_reported(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "lake.json")

    async def look() -> None:
        async with asyncio.timeout(10), open_lake(str(tmp_path), now=START):
            raise AssertionError("opened")

    with pytest.raises(StoreError, match=r"lake\.json is not a regular file"):
        asyncio.run(look())
