"""`verify` reports every object that differs from what was written, even in a single byte."""

from __future__ import annotations

import asyncio
import io
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imbrace_lake.errors import GatewayError
from imbrace_lake.gateway.models import Page
from imbrace_lake.lake.checkpoint import read_states
from imbrace_lake.lake.lake import Lake, open_lake, partition_key
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import conversation_rows
from imbrace_lake.lake.parquet import to_parquet
from imbrace_lake.lake.schema import SCHEMA, SCHEMA_VERSION
from imbrace_lake.policy import Window
from imbrace_lake.verify.counts import verify_counts
from imbrace_lake.verify.findings import Verification
from imbrace_lake.verify.objects import verify_objects
from imbrace_lake.verify.part import NOT_A_PART, WRONG_CLAIM, PartReport, judge_part
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.scale import IS_FULL
from tests.core.lake_runs import START, Bench, settings_for
from tests.core.test_conversation_states import entry
from tests.gateways import gateway_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Make a small lake with a checkpoint, a revision, a deletion and a second part."""
    folder = tmp_path_factory.mktemp("verify") / "lake"
    with Sandbox(SandboxOptions(conversations=0, sizes=(3, 40, 130))) as box:
        bench = Bench(box, str(folder))
        ids = list(box.conversations)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("imbrace_lake.lake.checkpoint.MAX_AFTER_CHECKPOINT", 2)
            bench.run()
            box.append(ids[0], 2)
            box.edit(ids[1], [box.truth(ids[1])[-1]["_id"]])
            box.delete(ids[2], 1)
            bench.run()
        yield bench


@pytest.fixture
def bench(_made: Bench, tmp_path: Path) -> Bench:
    """Return a copy of that lake."""
    shutil.copytree(_made.lake, tmp_path / "lake")
    return Bench(_made.box, str(tmp_path / "lake"), now=_made.now)


@pytest.fixture(params=["in memory", "in files"])
def position(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read parts into memory, and into files as if they were large."""
    if request.param == "in files":
        monkeypatch.setattr("imbrace_lake.verify.objects.LARGE_BYTES", -1)


def objects(bench: Bench) -> list[Path]:
    return [path for path in Path(bench.lake).glob("**/*") if path.is_file() and ".tmp" not in path.parts]


def flipped(body: bytes, position: int, bits: int = 0xFF) -> bytes:
    return body[:position] + bytes([body[position] ^ bits]) + body[position + 1 :]


def named(found: Verification) -> list[str]:
    return [difference.name for difference in found.differences]


@pytest.mark.usefixtures("position")
def test_a_lake_as_it_was_written_is_sound_and_every_object_was_read(bench: Bench) -> None:
    seen: list[tuple[int, int]] = []

    async def verify(lake: Lake) -> Verification:
        return await verify_objects(lake, lambda done, all: seen.append((done, all)))

    found = bench.look(verify)

    folders = {path.relative_to(bench.lake).parts[0] for path in objects(bench)}
    assert folders == {"lake.json", "messages", "conversations", "runs", "revisions", "shapes", "checkpoints"}
    assert found.is_sound
    assert found.parts + found.ledger_objects + 1 == len(objects(bench))
    assert found.unrecorded == 0
    assert seen[-1] == (len(objects(bench)), len(objects(bench)))


@pytest.mark.usefixtures("position")
def test_a_flipped_byte_in_any_object_is_reported(bench: Bench) -> None:
    rng = Random(1)
    for path in objects(bench):
        body = path.read_bytes()
        anywhere = (rng.randrange(len(body)) for _ in range(6 if IS_FULL else 2))
        positions = {0, len(body) - 1, len(body) - 5, *anywhere}
        for position in positions:
            path.write_bytes(flipped(body, position, 1 << rng.randrange(8)))
            expected = [str(path.relative_to(bench.lake))]
            try:
                found = named(bench.verify())
            except Exception as exc:  # noqa: BLE001 - a lake whose marker is damaged is not even opened
                assert path.name == "lake.json", (path, position)
                found = expected if "lake.json is damaged" in str(exc) else [repr(exc)]
            assert found == expected, (path, position)
        path.write_bytes(body)
    assert bench.verify().is_sound


def test_a_marker_damaged_while_the_lake_is_open_is_reported(bench: Bench) -> None:
    async def verify(lake: Lake) -> Verification:
        await lake.store.overwrite("lake.json", flipped(await lake.store.get("lake.json"), 40))
        return await verify_objects(lake)

    assert named(bench.look(verify)) == ["lake.json"]


@pytest.mark.usefixtures("position")
def test_any_flipped_byte_in_a_part_without_a_ledger_is_reported(bench: Bench) -> None:
    part = next(path for path in objects(bench) if path.name == "part-00001.parquet")
    for path in objects(bench):
        if path not in (part, Path(bench.lake, "lake.json")):
            path.unlink()
    assert bench.verify().is_sound
    assert bench.verify().unrecorded == 1
    body = part.read_bytes()
    rows = pq.read_table(part)

    step = 53 if IS_FULL else 211
    passed = []
    for position in range(0, len(body), step):
        part.write_bytes(flipped(body, position))
        if named(bench.verify()) != [str(part.relative_to(bench.lake))]:
            passed.append(position)
            assert pq.read_table(io.BytesIO(flipped(body, position))).equals(rows)

    # A part whose footer names another version of the writer need not have the bytes of this version.
    assert len(passed) <= len(b"parquet-cpp-arrow version 26.0.1") / step + 8


@pytest.mark.usefixtures("position")
def test_a_part_is_not_damaged_because_the_process_gets_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(*_: object, **_options: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr(pq, "ParquetFile", reject)

    with pytest.raises(MemoryError):
        judge_part(b"PAR1")


def test_a_missing_object_is_reported(bench: Bench) -> None:
    for path in objects(bench):
        folder = path.relative_to(bench.lake).parts[0]
        if folder in ("messages", "conversations", "revisions"):
            body = path.read_bytes()
            path.unlink()
            assert str(path.relative_to(bench.lake)) in named(bench.verify())
            path.write_bytes(body)


@pytest.mark.usefixtures("position")
def test_a_truncated_emptied_or_swapped_part_is_reported(bench: Bench) -> None:
    first, second = [path for path in objects(bench) if path.name == "part-00000.parquet"][:2]
    body = first.read_bytes()

    for wrong in (body[:-1], b"", second.read_bytes(), body + b"\0"):
        first.write_bytes(wrong)
        assert named(bench.verify()) == [str(first.relative_to(bench.lake))]


@pytest.mark.usefixtures("position")
@pytest.mark.parametrize("name", ["messages/notes.txt", "messages/org=o/copy.parquet", "{part}/notes.txt"])
def test_an_object_among_the_parts_that_is_none_is_to_be_moved(bench: Bench, name: str) -> None:
    part = next(path for path in objects(bench) if path.name == "part-00000.parquet")
    other = Path(bench.lake, name.format(part=part.parent))
    before = bench.verify().parts
    other.parent.mkdir(exist_ok=True)
    shutil.copy(part, other)

    found = bench.verify()

    assert [(one.name, one.problem) for one in found.differences] == [
        (str(other.relative_to(bench.lake)), "is not an object of the lake: move it elsewhere")
    ]
    assert (found.parts, found.unrecorded) == (before, 0)


def test_a_part_of_a_killed_run_is_counted_and_is_not_a_difference(bench: Bench) -> None:
    box = bench.box
    one = next(iter(box.conversations))
    box.append(one, 3)
    whole = Path(bench.lake, "conversations")
    before = {path.name for path in whole.iterdir()}
    bench.run()
    for path in whole.iterdir():
        if path.name not in before:
            path.unlink()
    shutil.rmtree(Path(bench.lake, "runs"))
    shutil.rmtree(Path(bench.lake, "checkpoints"))

    found = bench.verify()

    assert found.is_sound
    assert found.unrecorded == 1


def test_a_journal_of_a_run_under_way_is_verified_too(bench: Bench) -> None:
    async def damage(lake: Lake) -> str:
        await Journal(lake, "under-way", START).note_entries("x", [entry("a", 1, parts=())])
        stored = (await lake.store.list("journal/"))[0]
        await lake.store.overwrite(stored.key, flipped(await lake.store.get(stored.key), 30))
        return stored.key

    assert named(bench.verify()) == []
    key = bench.look(damage)
    assert named(bench.verify()) == [key]


@pytest.mark.usefixtures("position")
def test_a_part_replaced_while_it_is_verified_is_not_a_difference(bench: Bench) -> None:
    box = bench.box
    one = list(box.conversations)[1]

    async def verify(lake: Lake) -> Verification:
        real = lake.store.list

        async def then_a_run(prefix: str, **more: Any) -> Any:
            found = await real(prefix, **more)
            if prefix == "":
                lake.store.list = real  # type: ignore[method-assign]
                box.edit(one, [box.truth(one)[-2]["_id"]])
                await asyncio.to_thread(bench.run)
            return found

        lake.store.list = then_a_run  # type: ignore[method-assign]
        return await verify_objects(lake)

    found = bench.look(verify)

    assert found.is_sound
    assert found.unrecorded == 0


def test_of_two_concurrent_runs_either_may_have_written_last(bench: Bench) -> None:
    async def two(lake: Lake) -> None:
        part = (await lake.store.list("messages/"))[0]
        true = await read_states(lake, bench.box.options.organization_id)
        reported = next(one for states in true for one in states.parts if one.key == part.key)
        for number, (digest, begin, end) in enumerate([(reported.sha256, 100, 120), ("00" * 32, 110, 130)]):
            parts = (entry("x", 1).parts[0].__class__(part.key, part.size_bytes, reported.rows, digest),)
            base = entry("x", end, parts=parts, started_at=entry("x", begin).finished_at, run_id=f"r{number}")
            await Journal(lake, f"r{number}", START).note("conversations", "x", conversation_rows([base]))

    bench.look(two)

    assert bench.verify().is_sound


def test_counts_are_compared_with_the_gateway(bench: Bench) -> None:
    box = bench.box
    ids = list(box.conversations)

    seen: list[tuple[int, int]] = []

    async def count() -> list[str]:
        found = Verification()
        settings = settings_for(box, bench.lake, tries=1)
        async with (
            open_lake(bench.lake, now=None) as lake,
            gateway_of(settings) as gateway,
        ):
            states = await read_states(lake, box.options.organization_id)
            await verify_counts(gateway, states, found, on_progress=lambda *done: seen.append(done))
        assert found.counts == len(ids)
        return [f"{difference.name}: {difference.problem}" for difference in found.differences]

    bench.run()
    assert asyncio.run(count()) == []
    assert seen == [(1, 3), (2, 3), (3, 3)]

    box.append(ids[0], 2)
    box.vanish(ids[1])
    box.break_conversation(ids[2], "500")
    problems = dict(zip(sorted(ids), sorted(asyncio.run(count())), strict=True))
    size = box.conversations[ids[0]]
    assert problems[ids[0]] == f"{ids[0]}: has {size} messages at the gateway, {size - 2} in the lake"
    assert problems[ids[1]] == f"{ids[1]}: was deleted at the gateway"
    assert problems[ids[2]].startswith(f"{ids[2]}: could not be compared: the gateway failed with status 500")

    box.repair(ids[2])
    bench.run()
    assert asyncio.run(count()) == []
    # The token works elsewhere, so a 403 concerns only its conversation; a 401 concerns all.
    box.set_options(broken=dict.fromkeys(ids, "403"))
    assert sorted(problem.partition(": ")[0] for problem in asyncio.run(count())) == sorted(ids)
    box.set_options(broken=dict.fromkeys(ids, "401"))
    with pytest.raises(GatewayError):
        asyncio.run(count())
    box.set_options(broken={})
    box.restore(ids[1])
    assert asyncio.run(count()) == [
        f"{ids[1]}: is at the gateway again, with {box.conversations[ids[1]]} messages"
    ]


def test_a_conversation_whose_count_the_gateway_does_not_state_is_not_a_difference(bench: Bench) -> None:
    deleted = next(iter(bench.box.conversations))
    bench.box.vanish(deleted)
    bench.run()
    bench.box.restore(deleted)
    found = Verification()

    async def count(lake: Lake) -> None:
        async with gateway_of(settings_for(bench.box, bench.lake)) as gateway:
            get_page = gateway.get_page

            async def get_page_without_count(*args: Any, **options: Any) -> Page:
                return replace(await get_page(*args, **options), total_count=None)

            gateway.get_page = get_page_without_count  # type: ignore[method-assign]
            states = await read_states(lake, bench.box.options.organization_id)
            await verify_counts(gateway, states, found)

    bench.look(count)

    assert [(one.name, one.problem) for one in found.differences] == [(deleted, "is at the gateway again")]
    assert (found.counts, found.without_count) == (1, len(bench.box.conversations) - 1)


def test_counts_are_requested_concurrently_within_the_limit_of_the_limiter(
    tmp_path: Path,
) -> None:
    with Sandbox(SandboxOptions(conversations=40, latency_seconds=0.05)) as box:
        bench = Bench(box, str(tmp_path / "lake"))
        bench.run()
        box.reset_stats()
        found = Verification()

        async def count(lake: Lake) -> None:
            settings = settings_for(box, bench.lake, max_in_flight=5)
            async with gateway_of(settings) as gateway:
                states = await read_states(lake, box.options.organization_id)
                await verify_counts(gateway, states, found)

        bench.look(count)

        assert found.is_sound
        assert found.counts == 40
        assert box.stats().max_in_flight == 5


def unrecorded(patch: pytest.MonkeyPatch) -> None:
    """Let the next run die after publishing and before recording."""

    async def note_lines(self: Journal, name: str, lines: Iterable[bytes]) -> None:
        raise KeyboardInterrupt

    patch.setattr(Journal, "note_lines", note_lines)


@pytest.mark.usefixtures("position")
@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("change", ["edit", "delete"])
def test_a_part_replaced_without_a_record_by_a_killed_run_is_not_reported_as_damaged(
    change: str, is_closed: bool, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, (short, edited, *_) = bench.box, list(bench.box.conversations)
    before = {path: path.read_bytes() for path in objects(bench)}
    if change == "edit":
        box.edit(edited, [box.truth(edited)[-1]["_id"]])
    else:
        box.delete(edited, 1)
    with monkeypatch.context() as patch:
        unrecorded(patch)
        with pytest.raises(KeyboardInterrupt):
            bench.run([edited])
    if is_closed:
        # Another run records the dead one in the ledgers, and does not read its conversation.
        bench.now += timedelta(hours=2)
        bench.run([short])
    (part,) = [path for path, body in before.items() if path.read_bytes() != body]

    found = bench.verify()

    assert found.is_sound
    assert found.unrecorded == 1
    replaced = part.read_bytes()
    for position in (0, *range(7, len(replaced), 241 if IS_FULL else 1511), len(replaced) - 1):
        part.write_bytes(flipped(replaced, position))
        assert named(bench.verify()) == [str(part.relative_to(bench.lake))], position
    # The last recorded version is sound too; bytes that no run wrote are not.
    part.write_bytes(before[part])
    assert bench.verify().is_sound
    elsewhere = next(path for path in before if path.name == "part-00000.parquet" and path != part)
    elsewhere.write_bytes(replaced)
    assert named(bench.verify()) == [str(elsewhere.relative_to(bench.lake))]


@pytest.mark.usefixtures("position")
def test_a_part_that_was_set_back_to_an_old_version_is_reported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = bench.box
    edited = list(box.conversations)[1]
    part = next(path for path in objects(bench) if edited in str(path) and path.name == "part-00000.parquet")
    old = [part.read_bytes()]
    for is_killed in (True, False):
        box.edit(edited, [box.truth(edited)[-1]["_id"]])
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            if is_killed:
                unrecorded(patch)
            bench.run([edited])
        old.append(part.read_bytes())

    assert bench.verify().is_sound
    for body in old[:-1]:
        part.write_bytes(body)
        assert named(bench.verify()) == [str(part.relative_to(bench.lake))]


def claims(bench: Bench) -> dict[str, PartReport]:
    """Return the report of every part by its key."""
    found = {}
    for path in objects(bench):
        if path.suffix == ".parquet" and "messages" in path.parts:
            found[str(path.relative_to(bench.lake))] = judge_part(path)
    return found


def test_the_claim_of_a_part_equals_its_ledger_entry_and_a_copy_can_be_verified(
    bench: Bench, tmp_path: Path
) -> None:
    bench.box.append(next(iter(bench.box.conversations)), 200)
    bench.run()
    entries = {(row["conversation_id"], row["run_id"]): row for row in bench.ledger("conversations")}

    for key, report in claims(bench).items():
        copy = tmp_path / "copy of an object"
        shutil.copy(Path(bench.lake, key), copy)
        assert judge_part(copy) == report
        assert report.problem is None
        assert report.is_proven
        claim = report.claim
        assert claim is not None
        entry = entries[claim.conversation_id, claim.run_id]
        for name in ("organization_id", "status", "proof_method", "server_count"):
            assert getattr(claim, name) == entry[name], (key, name)
        assert claim.content_hash == report.content_hash
        assert claim.schema_version == SCHEMA_VERSION
        if len(entry["parts"]) == 1 and not entry["deleted_messages"]:
            assert claim.content_hash == entry["content_hash"]
    methods = {report.claim.proof_method for report in claims(bench).values() if report.claim}
    assert methods == {"overlap", "joined"}


@pytest.mark.usefixtures("position")
@pytest.mark.parametrize("has_ledger", [False, True])
@pytest.mark.parametrize(
    "wrong",
    [
        {"content_hash": "0" * 32},
        {"organization_id": "org_other"},
        {"conversation_id": "conv_other"},
    ],
)
def test_a_part_whose_claim_does_not_match_its_rows_is_reported(
    wrong: dict[str, Any], has_ledger: bool, bench: Bench
) -> None:
    part = next(path for path in objects(bench) if path.name == "part-00000.parquet")
    claim = judge_part(part).claim
    assert claim is not None
    rows = pq.read_table(part).cast(SCHEMA)
    if not has_ledger:
        for path in objects(bench):
            if path != part and path.name != "lake.json":
                path.unlink()
    part.write_bytes(to_parquet(rows, claim.metadata()))
    assert bench.verify().is_sound

    part.write_bytes(to_parquet(rows, replace(claim, **wrong).metadata()))

    assert named(bench.verify()) == [str(part.relative_to(bench.lake))]


def test_a_change_of_any_field_of_a_claim_is_found(bench: Bench) -> None:
    part = next(path for path in objects(bench) if path.name == "part-00000.parquet")
    claim = judge_part(part).claim
    assert claim is not None
    rows = pq.read_table(part).cast(SCHEMA)
    for name, value in claim.metadata().items():
        changed = value[:-1] + chr(ord(value[-1]) ^ 1)
        report = judge_part(to_parquet(rows, claim.metadata() | {name: changed}))
        assert (report.problem is None) == (name == "schema_version")  # which to_parquet sets itself


def test_any_other_object_of_a_lake_is_not_called_a_damaged_part(bench: Bench) -> None:
    part = next(path for path in objects(bench) if path.name == "part-00000.parquet")
    others = [path for path in objects(bench) if "messages" not in path.parts]
    assert {path.relative_to(bench.lake).parts[0] for path in others} > {
        "revisions",
        "lake.json",
        "checkpoints",
    }

    for path in others:
        assert judge_part(path).problem == judge_part(path.read_bytes()).problem == NOT_A_PART, path
        # In the place of a part it is damage.
        part.write_bytes(path.read_bytes())
        (found,) = bench.verify().differences
        assert found.problem.startswith("is damaged: restore it from a copy. Without a copy, delete it")


def test_rows_of_several_conversations_are_not_a_part(bench: Bench) -> None:
    parts = [path for path in objects(bench) if path.name == "part-00000.parquet"]
    claim = judge_part(parts[0]).claim
    assert claim is not None
    rows = pa.concat_tables([pq.read_table(path).cast(SCHEMA) for path in parts])

    report = judge_part(to_parquet(rows, claim.metadata()))

    assert report.problem == "contains rows of several conversations: restore it from a copy"


def test_rows_encoded_by_another_version_of_the_writer_are_verified_by_their_hash(bench: Bench) -> None:
    part = next(path for path in objects(bench) if path.name == "part-00000.parquet")
    claim, rows = judge_part(part).claim, pq.read_table(part).cast(SCHEMA)
    assert claim is not None
    same, fewer = to_parquet(rows, claim.metadata()), to_parquet(rows.slice(1), claim.metadata())

    def elsewhere(body: bytes) -> PartReport:
        return judge_part(body.replace(b"parquet-cpp-arrow version 26", b"parquet-cpp-arrow version 99"))

    assert elsewhere(same).is_proven
    assert elsewhere(fewer).problem == judge_part(fewer).problem == WRONG_CLAIM


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("is_missing", [False, True])
def test_the_advice_about_a_damaged_or_missing_part_without_a_copy_works(
    bench: Bench, which: int, is_missing: bool
) -> None:
    box = bench.box
    one = max(box.conversations, key=lambda each: box.conversations[each])
    box.append(one, 3)
    bench.run()
    part = sorted(Path(bench.lake, partition_key(box.options.organization_id, one)).iterdir())[which]
    if is_missing:
        part.unlink()
    else:
        part.write_bytes(b"damaged")

    (found,) = bench.verify().differences
    part.unlink(missing_ok=True)
    bench.settings = {"rewalk_days": 0.0}
    again = bench.run([one])

    assert found.problem.endswith(
        f"run `imbrace-lake backfill --conversation {one}`, which reads the conversation again; what was"
        " edited or deleted at the gateway before is lost"
    )
    assert ("delete it" in found.problem) != is_missing
    assert again.totals.conversations == {"complete": 1}
    assert {*bench.messages(one)} == {item["_id"] for item in box.truth(one)}
    assert bench.verify().is_sound


@pytest.mark.parametrize("new", [0, 1])
def test_a_part_lost_before_a_window_of_time_was_read_is_still_missing(bench: Bench, new: int) -> None:
    one = max(bench.box.conversations, key=lambda each: bench.box.conversations[each])
    bench.box.append(one, 3)
    bench.run()
    part = Path(bench.lake, partition_key(bench.box.options.organization_id, one), "part-00000.parquet")
    part.unlink()
    bench.box.append(one, new)
    newest = datetime.fromisoformat(bench.box.truth(one)[-1]["created_at"])

    report = bench.run([one], window=Window(since=newest))

    assert report.totals.messages_new == new
    assert named(bench.verify()) == [str(part.relative_to(bench.lake))]


def test_a_version_that_only_a_lost_ledger_object_recorded_is_not_called_damaged(bench: Bench) -> None:
    edited = list(bench.box.conversations)[1]
    ledger = Path(bench.lake, "conversations")
    before = {*ledger.iterdir()}
    bench.box.edit(edited, [bench.box.truth(edited)[-1]["_id"]])
    bench.run([edited])
    (record,) = {*ledger.iterdir()} - before
    record.unlink()

    assert named(bench.verify()) == [str(record.relative_to(bench.lake))]
    # Earlier releases wrote parts without a claim and in other ways, which only the ledger can judge.
    part = next(path for path in objects(bench) if edited in str(path))
    pq.write_table(pq.read_table(part).cast(SCHEMA), part, compression="snappy")
    assert named(bench.verify()) == [str(record.relative_to(bench.lake))]


def test_part_100000_comes_after_part_99999(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    one = max(bench.box.conversations, key=lambda each: bench.box.conversations[each])
    folder = Path(bench.lake, partition_key(bench.box.options.organization_id, one))
    first = min(folder.iterdir())
    shutil.move(first, folder / "part-99999.parquet")
    for path in {*folder.iterdir()} - {folder / "part-99999.parquet"}:
        path.unlink()
    shutil.copy(folder / "part-99999.parquet", folder / "part-100000.parquet")

    problems = {one.name: one.problem for one in bench.verify().differences}

    assert "repeats messages" in problems[str((folder / "part-100000.parquet").relative_to(bench.lake))]
    assert str((folder / "part-99999.parquet").relative_to(bench.lake)) not in problems


def test_accepted_repeats_are_part_of_the_count(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=0)) as box:
        items = [{"_id": f"m{number}", "created_at": "2024-01-01T00:00:00.000Z"} for number in (1, 2, 2)]
        conversation = box.put(items)
        bench = Bench(box, str(tmp_path / "lake"), settings={"accept_repeats": True})
        bench.run()

        async def count() -> Verification:
            found = Verification()
            async with (
                open_lake(bench.lake, now=None) as lake,
                gateway_of(settings_for(box, bench.lake)) as gateway,
            ):
                states = await read_states(lake, box.options.organization_id)
                await verify_counts(gateway, states, found)
            return found

        assert named(asyncio.run(count())) == []
        box.append(conversation, 1)
        (different,) = asyncio.run(count()).differences
        assert different.problem == "has 4 messages at the gateway, 2 and 1 repeat in the lake"
