"""`imbrace_lake.Lake`: what it reads, in which form, as of which time, and that it reaches nothing else."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import json
import pickle
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock
from uuid import uuid4

import fsspec
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imbrace_lake import Lake, Result, ViewSettings
from imbrace_lake.errors import DamagedObject, InputError, InvalidPhoneNumber, SettingsError, StoreError
from imbrace_lake.lake.lake import open_lake
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import LEDGER_SCHEMAS, PHONES
from imbrace_lake.lake.schema import SCHEMA
from imbrace_lake.phones.numbers import parse_phone, phone_hash
from imbrace_lake.query import files, reader
from imbrace_lake.query.table import TableSnapshot
from imbrace_lake.store.contract import ObjectMeta
from imbrace_lake.tables.compact import compact_lake
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.scale import IS_FULL
from tests.core.lake_runs import Bench
from tests.core.s3_servers import options_for
from tests.tables.lakes import compact, compact_all
from tests.talks import make_entries, make_phones, make_rows, write_lake
from tools.seaweed import Seaweed

KEY = b"0123456789abcdef"
NUMBER = "+886911425977"
ROWS = make_rows(3, 30)
INSTANTS = 200 if IS_FULL else 8
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talks") / "lake"
    number = {
        "organization_id": "org_0", "run_id": "run_2", "position": 9, "status": "resolved",
        "phone_hash": phone_hash(parse_phone(NUMBER), KEY), "conversation_ids": ["conv_2", "conv_8"],
        "resolved_at": datetime(2026, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    write_lake(folder, ROWS, make_entries(30), [*make_phones(), number])
    return folder


@pytest.fixture(scope="module")
def lake(made: Path) -> Iterator[Lake]:
    with Lake.open(str(made), phone_key=KEY) as lake:
        yield lake


def ids(result: Result) -> list[str]:
    return sorted(result.to_arrow().column("message_id").to_pylist())


def expected(*, keep: Any = lambda row: True, deleted: bool = False) -> list[str]:
    return sorted(row["message_id"] for row in ROWS if keep(row) and (deleted or not row["is_deleted"]))


@pytest.mark.slow
def test_messages_have_the_columns_and_types_of_the_lake(lake: Lake) -> None:
    result = lake.messages()

    assert result.schema == SCHEMA
    assert result.to_arrow().schema == SCHEMA
    assert ids(result) == expected()
    assert ids(lake.messages(deleted=True)) == expected(deleted=True)
    assert lake.messages(columns=["text", "created_at"]).to_arrow().schema.names == ["text", "created_at"]
    roles = {row["sender_role"] for row in result.to_arrow().to_pylist() if row["sender_id"] == "pub_1"}
    assert roles == {"bot"}


@pytest.mark.slow
def test_messages_of_a_span_of_time(lake: Lake) -> None:
    since, until = datetime(2025, 3, 9, tzinfo=UTC), datetime(2025, 10, 26, tzinfo=UTC)
    found = ids(lake.messages(since=since, until=until))

    assert found == expected(keep=lambda row: row["created_at"] and since <= row["created_at"] < until)
    assert 0 < len(found) < len(expected())


@pytest.mark.slow
def test_only_the_folders_of_wanted_conversations_are_read(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "lake")
    for folder in (tmp_path / "lake/messages").glob("*/*"):
        if folder.name not in ("conv=conv_2", "conv=conv_8", "conv=conv_4"):
            for part in folder.iterdir():
                part.write_bytes(b"damaged")
    with Lake.open(str(tmp_path / "lake"), phone_key=KEY) as lake:
        by_id = lake.messages(conversations=["conv_2", "conv_8"])
        assert ids(by_id) == expected(keep=lambda row: row["conversation_id"] in ("conv_2", "conv_8"))
        assert ids(lake.messages(phones=[NUMBER])) == ids(by_id)
        both = lake.messages(phones=[NUMBER], conversations=["conv_4", "conv_8"])
        assert ids(both) == expected(keep=lambda row: row["conversation_id"] == "conv_8")
        assert ids(lake.messages(conversations=[])) == []
        with pytest.raises((InputError, StoreError)):
            lake.messages().to_arrow()


def test_what_the_lake_does_not_have_is_a_warning(lake: Lake) -> None:
    sentence = r"no run has resolved these numbers, or phone_key is missing, .*: \+852\*{6}39$"
    with pytest.warns(UserWarning, match=sentence):
        found = ids(lake.messages(phones=["+85262602239", NUMBER]))
    assert found == ids(lake.messages(phones=[NUMBER]))

    with pytest.warns(UserWarning, match=r"the lake has no messages of these conversations: ' conv_nobody'$"):
        found = ids(lake.messages(conversations=["conv_2", " conv_nobody"]))
    assert found == ids(lake.messages(conversations="conv_2"))


@pytest.mark.slow
def test_a_number_is_found_by_itself_if_its_hash_has_another_key(tmp_path: Path) -> None:
    number = {
        "organization_id": "org_0", "run_id": "run_2", "position": 9, "status": "resolved",
        "phone_hash": phone_hash(parse_phone(NUMBER), KEY), "phone": NUMBER,
        "conversation_ids": ["conv_1"], "resolved_at": datetime(2026, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    later = {"phone_hash": "of a new key", "resolved_at": datetime(2026, 1, 2, tzinfo=UTC)}
    other = {"organization_id": "org_1", "conversation_ids": ["conv_4"]}
    rows = [
        number,
        {**number, **later, "conversation_ids": ["conv_2"]},
        {**number, **later, **other},
    ]
    write_lake(tmp_path / "lake", ROWS, make_entries(30), rows)
    with Lake.open(tmp_path / "lake", phone_key=b"another key of 32 bytes") as lake:
        found = ids(lake.messages(phones=NUMBER))
        assert found == ids(lake.messages(conversations=["conv_1", "conv_2", "conv_4"])) != []
        assert ids(lake.messages(phones="0911425977", region="tw")) == found


def number_row(run: int, status: str, ids: list[str] | None, **more: Any) -> dict[str, Any]:
    """Return a row of the ledger `phones` about `NUMBER`, by run `run`, on that day of January 2026."""
    return {
        "organization_id": "org_0", "run_id": f"run_{run}", "position": 0, "status": status,
        "phone_hash": phone_hash(parse_phone(NUMBER), KEY), "conversation_ids": ids,
        "resolved_at": datetime(2026, 1, run, tzinfo=UTC), **more,
    }  # fmt: skip


def add_phones(folder: Path, rows: Rows) -> None:
    """Add rows to the ledger `phones` of a lake, each as its run does."""

    async def write() -> None:
        async with open_lake(str(folder), now=None) as lake:
            for row in rows:
                journal = Journal(lake, row["run_id"], row["resolved_at"])
                await journal.add("phones", pa.Table.from_pylist([row], schema=PHONES))

    asyncio.run(write())


def test_a_failed_request_does_not_hide_the_conversations_of_a_number(tmp_path: Path) -> None:
    rows = [number_row(1, "resolved", ["conv_2"]), number_row(2, "error", None, reason="500")]
    write_lake(tmp_path / "lake", ROWS, [], rows)
    with Lake.open(tmp_path / "lake", phone_key=KEY) as lake:
        assert ids(lake.messages(phones=NUMBER)) == ids(lake.messages(conversations="conv_2")) != []
        (row,) = lake.phones().to_arrow().to_pylist()
        assert (row["status"], row["run_id"]) == ("resolved", "run_1")


def add_run(folder: Path, finished_at: datetime) -> None:
    """Add a row to the ledger `runs` of a lake."""

    async def write() -> None:
        async with open_lake(str(folder), now=None) as lake:
            row = {
                "run_id": "run_1", "organization_id": "org_0", "status": "complete",
                "finished_at": finished_at,
            }  # fmt: skip
            journal = Journal(lake, "run_1", finished_at)
            await journal.add("runs", pa.Table.from_pylist([row], schema=LEDGER_SCHEMAS["runs"]))

    asyncio.run(write())


# The answers about a number: two conversations, one of them, a failed request, an incomplete answer, none.
ANSWERS = [
    number_row(1, "resolved", ["conv_1", "conv_2"]),
    number_row(2, "resolved", ["conv_2"]),
    number_row(3, "error", None, reason="500"),
    number_row(4, "error", ["conv_4"], reason="not all"),
    number_row(5, "none", []),
]


@pytest.mark.slow
@pytest.mark.parametrize("compacted", [0, 3, 5])
def test_a_number_has_the_conversations_of_all_answers(tmp_path: Path, compacted: int) -> None:
    bench: Any = SimpleNamespace(
        lake=str(tmp_path / "lake"), now=datetime(2026, 2, 1, tzinfo=UTC), store=None
    )
    bench.look = partial(Bench.look, bench)
    write_lake(tmp_path / "lake", ROWS, [], ANSWERS[:compacted])
    if compacted:
        compact_all(bench)
    add_phones(tmp_path / "lake", ANSWERS[compacted:])

    for source in (None, "parts"):
        with Lake.open(tmp_path / "lake", phone_key=KEY, source=source) as lake:
            found = ids(lake.messages(phones=NUMBER))
            assert found == ids(lake.messages(conversations=["conv_1", "conv_2", "conv_4"])) != []
            assert ids(lake.messages(phones=NUMBER, conversations="conv_1")) == ids(
                lake.messages(conversations="conv_1")
            )
            # Only answers that were known at the time.
            for day, names in {
                1: ["conv_1", "conv_2"],
                3: ["conv_1", "conv_2"],
                4: ["conv_1", "conv_2", "conv_4"],
            }.items():
                as_of = datetime(2026, 1, day, 8, tzinfo=timezone(timedelta(hours=8)))
                by_id = lake.messages(conversations=names, as_of=as_of, columns="message_id")
                assert ids(lake.messages(phones=NUMBER, as_of=as_of)) == ids(by_id) != []
            early = datetime(2025, 12, 31, tzinfo=UTC)
            with pytest.warns(UserWarning, match=r"no run has resolved these numbers by 2025-12-31T.*77$"):
                assert ids(lake.messages(phones=NUMBER, as_of=early)) == []


def test_a_number_is_found_in_rows_that_have_only_its_hash_by_an_earlier_key(tmp_path: Path) -> None:
    old, current = (phone_hash(parse_phone(NUMBER), key) for key in (b"an old key", KEY))
    rows = [
        number_row(1, "resolved", ["conv_1"], phone_hash=old),
        number_row(2, "resolved", ["conv_2"], phone_hash=old, phone=NUMBER),
        number_row(3, "resolved", ["conv_4"], phone_hash=current),
        number_row(4, "resolved", ["conv_6"], phone_hash="of another number", phone="+886911000000"),
    ]
    write_lake(tmp_path / "lake", ROWS, [], rows)
    with Lake.open(tmp_path / "lake", phone_key=KEY) as lake:
        found = ids(lake.messages(phones=NUMBER))
        assert found == ids(lake.messages(conversations=["conv_1", "conv_2", "conv_4"])) != []


def test_a_number_is_found_with_the_key_of_the_lake_too(tmp_path: Path) -> None:
    write_lake(tmp_path / "lake", ROWS, [], [])
    key = bytes.fromhex(json.loads((tmp_path / "lake/lake.json").read_text())["phone_key"])
    of_lake = phone_hash(parse_phone(NUMBER), key)
    add_phones(
        tmp_path / "lake",
        [number_row(1, "resolved", ["conv_1"], phone_hash=of_lake), number_row(2, "resolved", ["conv_2"])],
    )
    with Lake.open(tmp_path / "lake", phone_key=KEY) as lake:
        found = ids(lake.messages(phones=NUMBER))
        assert found == ids(lake.messages(conversations=["conv_1", "conv_2"])) != []


def test_a_number_whose_requests_all_failed_is_a_warning(tmp_path: Path) -> None:
    write_lake(tmp_path / "lake", ROWS, [], [number_row(1, "error", None)])
    with (
        Lake.open(tmp_path / "lake", phone_key=KEY) as lake,
        pytest.warns(UserWarning, match="no run has resolved these numbers"),
    ):
        assert ids(lake.messages(phones=NUMBER)) == []


def test_a_damaged_object_that_can_name_more_conversations_is_a_warning(tmp_path: Path) -> None:
    write_lake(tmp_path / "lake", ROWS, [], ANSWERS[:1])
    (path,) = (tmp_path / "lake/phones").iterdir()
    add_phones(tmp_path / "lake", ANSWERS[1:2])
    path.write_bytes(b"damaged")
    with (
        Lake.open(tmp_path / "lake", phone_key=KEY) as lake,
        pytest.warns(UserWarning, match=f"can be missing, because .* damaged: phones/{path.name}"),
    ):
        assert ids(lake.messages(phones=NUMBER)) == ids(lake.messages(conversations="conv_2"))


@pytest.mark.slow
def test_a_stored_conversation_stays_with_its_number_when_the_gateway_does_not_link_it_any_more(
    tmp_path: Path,
) -> None:
    with Sandbox(SandboxOptions(conversations=2, sizes=(3, 5))) as box:
        bench = Bench(box, str(tmp_path / "lake"))
        bench.run()
        first, second, *_ = box.conversations
        one = box.truth(first)[0]["_id"]
        box.edit(first, [one])
        bench.run()
    rows = [
        number_row(1, "resolved", [first], organization_id=box.options.organization_id),
        number_row(2, "none", [], organization_id=box.options.organization_id),
    ]
    add_phones(tmp_path / "lake", rows)
    with Lake.open(tmp_path / "lake", phone_key=KEY) as lake:
        assert lake.messages(phones=NUMBER).to_arrow().num_rows == len(box.truth(first))
        (revision,) = lake.revisions(phones=NUMBER).to_arrow().to_pylist()
        assert revision["message_id"] == one
        assert lake.revisions(conversations=first.removeprefix("conv_")).to_arrow().num_rows == 1
        assert lake.revisions(conversations=second).to_arrow().num_rows == 0
        assert lake.revisions(conversations=[]).to_arrow().num_rows == 0
        assert lake.revisions().to_arrow().schema == lake.revisions(phones=NUMBER).schema


@pytest.mark.parametrize("spelling", ["conv_{}", "tcu_{}", "{}"])
def test_a_conversation_is_found_in_any_spelling(tmp_path: Path, spelling: str) -> None:
    uuid = "5d1a4c7e-9f20-4a4b-8c6d-7e8f11111111"
    for number, stored in enumerate(("conv_{}", "tcu_{}", "{}")):
        row = {**ROWS[0], "conversation_id": stored.format(uuid), "message_id": "m", "is_deleted": False}
        write_lake(tmp_path / f"{number}", [row], [], [])
        with Lake.open(str(tmp_path / f"{number}")) as lake:
            assert ids(lake.messages(conversations=[spelling.format(uuid)])) == ["m"]


@pytest.mark.slow
def test_only_one_organization_is_read_on_request(made: Path) -> None:
    with Lake.open(str(made), organization="org_1") as lake:
        assert ids(lake.messages()) == expected(keep=lambda row: row["organization_id"] == "org_1")
        assert {*lake.conversations().to_arrow().column("organization_id").to_pylist()} == {"org_1"}
        assert lake.phones().to_arrow().num_rows == 0


@pytest.mark.slow
def test_a_result_has_the_form_that_the_reader_needs(lake: Lake) -> None:
    result = lake.messages(columns=["message_id", "created_at"])
    table = result.to_arrow()

    assert sum(batch.num_rows for batch in result.batches(10)) == table.num_rows
    assert len([*lake.sql("FROM range(10000)").batches(2_048)]) > 1
    from_arrow: Any = pd.DataFrame.from_arrow  # type: ignore[attr-defined]  # unknown to the stubs
    for frame in (result.to_pandas(), from_arrow(result)):
        assert [*frame.columns] == table.column_names
        assert len(frame) == table.num_rows
    for columns in (result.to_polars(), pl.DataFrame(result)):
        assert columns.columns == table.column_names
        assert columns.height == table.num_rows
    assert pa.table(result).sort_by("message_id") == table.sort_by("message_id")
    assert repr(result) == "Result(message_id, created_at)"


def test_batches_have_as_many_rows_as_asked_for_however_small_the_parts_are(lake: Lake) -> None:
    result = lake.messages()
    rows = result.to_arrow().num_rows

    assert [batch.num_rows for batch in result.batches()] == [rows]
    sizes = [batch.num_rows for batch in result.batches(100)]
    assert sum(sizes) == rows > 200
    assert max(sizes) <= 100
    assert all(one + other > 100 for one, other in itertools.pairwise(sizes))


def test_a_batch_of_long_messages_is_limited_by_its_bytes(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = lake.messages()
    bytes_of_all = result.to_arrow().nbytes
    monkeypatch.setattr("imbrace_lake.query.result.BATCH_BYTES", bytes_of_all // 4)

    assert len([*result.batches()]) >= 4


@pytest.mark.slow
def test_nothing_is_read_before_a_result_is_used(tmp_path: Path) -> None:
    lake = Lake.open(str(tmp_path / "none"))
    result = lake.messages()
    assert result.schema == SCHEMA
    assert not (tmp_path / "none").exists()

    with pytest.raises(InputError, match="there is no lake at"):
        result.to_arrow()

    write_lake(tmp_path / "none", ROWS, [], [])
    assert ids(result) == expected()
    lake.close()
    assert ids(result) == expected()
    lake.close()


# Lakes that the garbage collector closes, at any place and in any thread, and one that is open at the end.
NOT_CLOSED = """
import gc, sys
from imbrace_lake import Lake

gc.set_threshold(50, 2, 2)
kept = []
for _ in range(int(sys.argv[2])):
    lake = Lake.open(sys.argv[1])
    lake.itself = lake
    kept = [lake, lake.sql("FROM settings"), lake.messages()]
    assert kept[1].to_arrow().num_rows == 1
    kept += [kept[2].batches(1), kept[2].to_reader()]
    next(kept[3])
print("read")
"""


@pytest.mark.slow
def test_lakes_that_are_not_closed_do_not_stop_the_process(made: Path) -> None:
    rounds = 400 if IS_FULL else 15
    ended = subprocess.run(
        [sys.executable, "-W", "default", "-c", NOT_CLOSED, str(made), str(rounds)],
        capture_output=True,
        text=True,
        # A round takes 0.25 s of CPU, and more than a second on a busy machine.
        timeout=60 + 4 * rounds,
        check=False,
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "read\n", "")


# A process that inherits an open lake, as the workers of `multiprocessing` on Linux do before Python 3.14.
FORKED = """
import os, sys
from imbrace_lake import Lake

lake = Lake.open(sys.argv[1])
lake.sql("SELECT 1").to_arrow()
if os.fork():
    os.wait()
    print(lake.sql("SELECT 2 AS n").to_arrow().to_pydict())
else:
    try:
        lake.sql("SELECT 1").to_arrow()
    except Exception as exc:
        print(f"{type(exc).__name__}: {exc}", flush=True)
    lake.close()
    os._exit(0)
"""


@pytest.mark.slow
def test_a_lake_in_a_forked_process_is_one_sentence_instead_of_a_wait_without_end(made: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FORKED, str(made)], capture_output=True, text=True, timeout=60, check=False
    )

    sentence, result = ended.stdout.splitlines()
    assert sentence.startswith("StoreError: this process was forked from the one that opened the lake")
    assert result == "{'n': [2]}"


SLOW = "SELECT sum(a.i * b.i % 7) FROM range(10000000) AS a(i), range(100000) AS b(i)"
INTERRUPTED = """
import os, signal, sys, threading, time
from imbrace_lake import Lake
with Lake.open(sys.argv[1]) as lake:
    if sys.argv[4] == "loaded":
        lake.sql("SELECT 1").to_arrow()
    start = time.monotonic()
    try:
        threading.Timer(float(sys.argv[5]), os.kill, (os.getpid(), signal.SIGINT)).start()
        getattr(lake.sql(sys.argv[2]), sys.argv[3])()
    except KeyboardInterrupt:
        print(time.monotonic() - start < 60)
    print(lake.sql("SELECT 7 AS n").to_arrow().to_pylist())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "query", "state", "seconds"),
    [
        ("to_arrow", SLOW, "loaded", 0.5),
        ("to_pandas", f"SELECT 1 UNION ALL {SLOW}", "loaded", 0.5),
        # Before the query begins: while modules are loaded or the lake is opened.
        *(("to_arrow", SLOW, "new", seconds) for seconds in (0.02, 0.06, 0.2)),
    ],
)
def test_ctrl_c_ends_a_query_at_once(made: Path, method: str, query: str, state: str, seconds: float) -> None:
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, made, query, method, state, str(seconds)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip

    assert (result.stdout, result.stderr) == ("True\n[{'n': 7}]\n", "")


def test_a_lake_is_closed_when_it_is_not_used_any_more(made: Path) -> None:
    before = {*threading.enumerate()}
    gc.disable()
    try:
        lake = Lake.open(str(made))
        result = lake.messages()
        assert result.to_arrow().num_rows > 0
        threads = {*threading.enumerate()} - before
        del lake, result
        assert threads
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    finally:
        gc.enable()


NO_ZONE = datetime(2026, 1, 1)  # noqa: DTZ001
EARLY = datetime(2001, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"columns": ["texts"]}, "no column 'texts'"),
        ({"columns": []}, "columns must name each column once, and at least one"),
        ({"columns": ["text", "text"]}, "columns must name each column once"),
        ({"columns": 5}, "columns must be a list of texts"),
        ({"conversations": [5]}, "conversations must be texts, such as 'conv_…', and one is of type int"),
        ({"conversations": b"conv_2"}, "conversations must be a list of texts"),
        ({"phones": [886911425977]}, "phones must be texts, .* and one is of type int"),
        ({"since": NO_ZONE}, "since has no time zone"),
        ({"since": pd.NaT}, "since is NaT, not a time"),
        ({"since": date(2023, 3, 1)}, r"since must .* write datetime\(2023, 3, 1, tzinfo=UTC\)"),
        ({"until": "2023-03-01"}, "until must be a datetime with a time zone, and is of type str"),
        ({"as_of": 5}, "as_of must be a datetime with a time zone, and is of type int"),
        ({"since": EARLY, "until": EARLY}, "since must be before until"),
        ({"region": 886}, "region must be a text, such as 'TW'"),
        ({"deleted": "no"}, "deleted must be True or False"),
        ({"deleted": None}, "deleted must be True or False, and is None"),
    ],
)
def test_wrong_arguments_of_messages_are_explained(lake: Lake, given: Any, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence) as caught:
        lake.messages(**given)

    assert "886911425977" not in str(caught.value)


def test_wrong_phone_numbers_are_rejected(lake: Lake) -> None:
    with pytest.raises(InvalidPhoneNumber):
        lake.messages(phones=["12"])


@pytest.mark.parametrize(
    "given",
    [
        {"url": ""}, {"url": None}, {"url": "a\0"}, {"url": "\ud800"}, {"organization": "\ud800"},
        {"organization": ["org_1"]}, {"source": "foo"}, {"phone_key": "key"}, {"settings": {}},
        {"options": {}},
    ],
)  # fmt: skip
def test_a_lake_is_not_opened_with_wrong_arguments(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        Lake.open(**{"url": "lake", **given})


@pytest.mark.parametrize(
    ("query", "values"),
    [(None, None), (b"SELECT 1", None), ("\ud800", None), ("SELECT ?", 5), ("SELECT ?", "a"), ("$a", {1: 2})],
)
def test_wrong_arguments_of_queries_are_explained(lake: Lake, query: Any, values: Any) -> None:
    with pytest.raises(SettingsError):
        lake.sql(query, values)


@pytest.mark.parametrize(
    ("query", "values", "sentence"),
    [
        ("SELECT ?, ?", [1], r"has no value for \$2;"),
        ("SELECT ?", [1, 2], r"has no \$2;"),
        ("SELECT $a, $b", {"b": 1}, r"has no value for \$a;"),
        ("SELECT $a", {"a": 1, "c": 2, "b": 3}, r"has no \$b, \$c;"),
        ("SELECT 1", [2], r"has no \$1;"),
        ("SELECT $a", [1], r"has no value for \$a;"),
        ("SELECT ?", None, r"has no value for \$1;"),
    ],
)
def test_missing_and_superfluous_parameters_are_named(
    lake: Lake, query: str, values: Any, sentence: str
) -> None:
    with pytest.raises(InputError, match=f"^the query {sentence}"):
        lake.sql(query, values).to_arrow()


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("FROM classes", "there is no table or view classes: SHOW TABLES lists those of the lake"),
        ("FROM runs, nope", "there is no table or view nope: SHOW TABLES lists those of the lake"),
        ("FROM a.b", 'there is no table or view "a.b": SHOW TABLES lists those of the lake'),
        ("SELECT concatt(1)", "there is no scalar function concatt in DuckDB"),
        ("SELECT 1::whole", "there is no type whole in DuckDB"),
        (
            "SELECT run FROM runs",
            'Binder Error: Referenced column "run" not found in FROM clause! Candidate bindings: "run_id"',
        ),
        ("SELEC 1", 'Parser Error: syntax error at or near "SELEC"'),
    ],
)
def test_errors_of_queries_are_one_line_without_names_of_the_engine(
    lake: Lake, query: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}") as caught:
        lake.sql(query).to_arrow()

    assert "\n" not in str(caught.value)
    assert "Did you mean" not in str(caught.value)


def test_a_lake_is_not_pickled_with_its_keys(lake: Lake) -> None:
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"a Lake cannot be pickled or copied: call Lake\.open"):
            copied(lake)


@pytest.mark.parametrize("rows", [0, -1, 2**31, 1.5, "5", None, True])
def test_a_batch_has_rows(lake: Lake, rows: Any) -> None:
    for read in (lake.runs().batches, lake.runs().to_reader):
        with pytest.raises(SettingsError, match="the rows of a batch must be a number from 1"):
            read(rows)


@pytest.mark.slow
def test_a_single_text_is_the_same_as_a_list_with_it(made: Path, lake: Lake) -> None:
    of_one = ids(lake.messages(conversations=["conv_2"]))

    assert of_one
    assert ids(lake.messages(conversations="conv_2")) == of_one
    assert ids(lake.messages(conversations=pa.array(["conv_2"]))) == of_one
    assert ids(lake.messages(phones=NUMBER)) == ids(lake.messages(phones=[NUMBER])) != []
    assert lake.messages(columns="text").schema.names == ["text"]
    with Lake.open(made) as opened:
        assert opened.url == lake.url


@pytest.mark.slow
@pytest.mark.parametrize(
    "query",
    [
        "FROM runs",
        "FROM phones",
        "FROM revisions",
        "FROM runs JOIN phones USING (run_id)",
        # Names that are not those of views here.
        "SELECT totals->>'$.conversations.failed' FROM runs",
        "SELECT count(*) AS messages FROM runs -- not messages",
        'SELECT run_id AS "messages" FROM phones AS episodes',
    ],
)
def test_results_of_ledgers_state_their_source_and_age(tmp_path: Path, query: str) -> None:
    finished_at = datetime(2026, 1, 1, tzinfo=UTC)
    write_lake(tmp_path / "lake", ROWS[:5], make_entries(5), make_phones())
    with Lake.open(tmp_path / "lake") as lake:
        result = lake.sql(query)
        result.to_arrow()
        assert (result.source, result.as_of) == ("ledgers", None)
        add_run(tmp_path / "lake", finished_at)
        result.to_arrow()
        assert (result.source, result.as_of) == ("ledgers", finished_at)
        for several in ("SELECT 1 FROM messages, runs", "SELECT 1 FROM runs, query('FROM \"Messages\"')"):
            joined = lake.sql(several)
            joined.to_arrow()
            assert (joined.source, joined.as_of) == ("parts", finished_at)


def test_a_result_of_nothing_states_no_source(lake: Lake) -> None:
    result = lake.sql("FROM settings")

    assert result.to_arrow().num_rows == 1
    assert (result.source, result.as_of) == (None, None)


ESCAPES = [
    "FROM read_text('/etc/passwd')",
    "FROM '/etc/passwd'",
    "FROM glob('/etc/*')",
    "FROM read_csv('https://example.com/a.csv')",
    "FROM read_parquet('s3://bucket/a.parquet')",
    "FROM read_parquet('{lake}/lake.json')",
    "FROM read_json('{lake}/lake.json')",
    "FROM read_blob('{lake}/**')",
    "FROM parquet_metadata('{lake}/messages/**/*.parquet')",
    "FROM sniff_csv('/etc/passwd')",
    "FROM sqlite_scan('/tmp/a.db', 'a')",
    "FROM ROWS",
    "FROM duckdb_secrets()",
    "SELECT getenv('HOME')",
    "COPY messages TO '{lake}/copy.parquet'",
    "COPY (SELECT 1) TO '/tmp/imbrace-lake-escape'",
    "EXPORT DATABASE '/tmp/imbrace-lake-escape'",
    "IMPORT DATABASE '/tmp/imbrace-lake-escape'",
    "ATTACH '/tmp/imbrace-lake-escape.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "RESET enable_external_access",
    "PRAGMA enable_external_access",
    "CREATE SECRET (TYPE s3)",
    "CREATE TABLE a AS SELECT 1",
    "CREATE OR REPLACE VIEW messages AS SELECT 1",
    "DROP VIEW messages",
    "INSERT INTO settings VALUES (1)",
    "DELETE FROM messages",
    "CALL pragma_version()",
    "SELECT 1; COPY (SELECT 1) TO '/tmp/imbrace-lake-escape'",
    "PREPARE a AS SELECT 1",
    "BEGIN",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '/tmp/imbrace-lake-escape'",
    "CHECKPOINT",
    "VACUUM",
    "USE memory",
    "",
    "SELEC",
]


@pytest.mark.parametrize("attempt", ESCAPES)
def test_a_query_reaches_nothing_but_the_lake(lake: Lake, made: Path, attempt: str) -> None:
    before = sorted(path.name for path in made.iterdir())

    with pytest.raises(InputError) as caught:
        lake.sql(attempt.format(lake=made)).to_arrow()

    assert "root:" not in str(caught.value)
    assert "\n\n" not in str(caught.value)
    assert sorted(path.name for path in made.iterdir()) == before
    assert not [*Path("/tmp").glob("imbrace-lake-escape*")]  # noqa: S108


@pytest.mark.slow
@pytest.mark.parametrize(
    "query",
    [
        "SHOW TABLES", "DESCRIBE episodes", "SUMMARIZE turns", "EXPLAIN SELECT 1", "VALUES (1)",
        "WITH a AS (SELECT 1) FROM a", "PIVOT busiest_hours ON weekday USING sum(contact_messages)",
        'SELECT count(*) FROM "messages" JOIN "Conversations" USING (conversation_id)',
    ],
)  # fmt: skip
def test_queries_that_only_read_are_allowed(lake: Lake, query: str) -> None:
    assert lake.sql(query).to_arrow().num_rows > 0


def test_no_query_can_change_the_settings_of_the_connection(lake: Lake) -> None:
    (row,) = lake.sql("SELECT current_setting('lock_configuration') AS is_locked").to_arrow().to_pylist()

    assert row == {"is_locked": True}


def test_a_long_query_writes_nothing_to_standard_output(lake: Lake) -> None:
    (row,) = lake.sql("SELECT current_setting('enable_progress_bar') AS shown").to_arrow().to_pylist()

    assert row == {"shown": False}


@pytest.mark.slow
def test_parameters_are_values(lake: Lake) -> None:
    query = "SELECT count(*) AS n FROM messages WHERE conversation_id = $id"

    assert lake.sql(query, {"id": "' OR 1 = 1"}).to_arrow().to_pylist() == [{"n": 0}]
    count = lake.sql(query, {"id": "conv_2"}).to_arrow()
    assert count.column("n")[0].as_py() > 0
    assert lake.sql(query.replace("$id", "?"), ["conv_2"]).to_arrow() == count
    assert lake.sql(query.replace("$id", "$1"), ("conv_2",)).to_arrow() == count
    # A number of a data frame is one of NumPy.
    number: Any = pd.Series([2**40]).iloc[0]
    assert type(number) is not int
    for sql, values in (("SELECT ? AS n", [number]), ("SELECT $n AS n", {"n": number})):
        assert lake.sql(sql, values).to_arrow().to_pylist() == [{"n": 2**40}]


@pytest.mark.slow
def test_settings_change_the_views(made: Path) -> None:
    with Lake.open(str(made), settings=ViewSettings(gap=timedelta(seconds=1))) as lake:
        many = lake.episodes().to_arrow().num_rows
    with Lake.open(str(made)) as lake:
        assert 0 < lake.episodes().to_arrow().num_rows < many
        assert lake.replies().to_arrow().num_rows > 0


# -- the compacted table --------------------------------------------------------------------------


@pytest.fixture
def table(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the lake, and add a table with all rows but those of the last conversation."""
    folder = tmp_path / "lake"
    shutil.copytree(made, folder)
    (folder / "tables/messages").mkdir(parents=True)
    rows = [row for row in ROWS if row["conversation_id"] != "conv_29"]
    path = folder / "tables/messages/one.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    meta = ObjectMeta(
        "tables/messages/one.parquet", path.stat().st_size, "", datetime(2026, 1, 1, tzinfo=UTC)
    )

    async def snapshot(_: object) -> TableSnapshot:
        return TableSnapshot((meta,), datetime(2026, 1, 2, tzinfo=UTC))

    monkeypatch.setattr(reader, "read_table_snapshot", snapshot)
    return folder


@pytest.mark.slow
def test_the_table_is_read_if_there_is_one(table: Path) -> None:
    in_table = expected(keep=lambda row: row["conversation_id"] != "conv_29")
    with Lake.open(str(table)) as lake:
        result = lake.messages()
        assert ids(result) == in_table != expected()
        assert (result.source, result.as_of) == ("table", datetime(2026, 1, 2, tzinfo=UTC))
        assert lake.messages(conversations=["conv_29"]).to_arrow().num_rows > 0
        late = lake.messages(as_of=datetime(2026, 1, 3, tzinfo=UTC))
        assert ids(late) == expected()
        assert late.source == "parts"
    with Lake.open(str(table), source="parts") as lake:
        assert ids(lake.messages()) == expected()
    with Lake.open(str(table), source="table", organization="org_0") as lake:
        assert ids(lake.messages()) == expected(keep=lambda row: row["organization_id"] == "org_0")
        with pytest.raises(InputError, match="the table is as of"):
            lake.messages(as_of=datetime(2026, 1, 3, tzinfo=UTC)).to_arrow()


@pytest.mark.slow
def test_chosen_conversations_are_read_from_the_table_on_request(table: Path) -> None:
    with Lake.open(str(table), source="table", phone_key=KEY) as lake:
        for chosen in (
            {"conversations": "conv_2"},
            {"phones": NUMBER, "conversations": ["conv_2", "conv_4"]},
        ):
            result = lake.messages(**chosen)
            assert ids(result) == expected(keep=lambda row: row["conversation_id"] == "conv_2")
            assert (result.source, result.as_of) == ("table", datetime(2026, 1, 2, tzinfo=UTC))
        assert ids(lake.messages(phones=NUMBER)) == expected(
            keep=lambda row: row["conversation_id"] in ("conv_2", "conv_8")
        )
        assert ids(lake.messages(conversations=[])) == []
        with pytest.warns(UserWarning, match="the table has no messages of these conversations: 'conv_29'$"):
            assert ids(lake.messages(conversations=["conv_29"])) == []
    with Lake.open(str(table)) as lake:
        by_default = lake.messages(conversations=["conv_29"])
        assert ids(by_default) == expected(keep=lambda row: row["conversation_id"] == "conv_29") != []
        assert by_default.source == "parts"


def hole(body: bytes) -> bytes:
    """Return a file of the same size with wrong values in its middle."""
    return body[:1_000] + bytes(len(body) - 3_000) + body[-2_000:]


ADVICE = (
    "delete the folder tables/messages/, which `imbrace-lake compact` then writes again, and read the parts"
    r" until then \(--source parts; in Python, source='parts'\)$"
)


@pytest.mark.parametrize("kind", ["folder", "memory"])
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda _: None, r"/tables/messages/one\.parquet is missing: "),
        (lambda body: body[:2_000], r"/tables/messages/one\.parquet has 2,000 bytes, not [\d,]+: "),
        (hole, r"/tables/messages/(one\.parquet)? is damaged: "),
    ],
)
def test_a_damaged_table_is_one_sentence_with_advice(
    table: Path, damage: Any, sentence: str, kind: str
) -> None:
    path = table / "tables/messages/one.parquet"
    body = damage(path.read_bytes())
    path.unlink() if body is None else path.write_bytes(body)
    url = in_memory(table) if kind == "memory" else str(table)
    with Lake.open(url, source="table") as lake:
        for result in (lake.messages(), lake.sql("FROM turns"), lake.messages(conversations="conv_2")):
            with pytest.raises(DamagedObject, match=sentence + ADVICE) as caught:
                result.to_arrow()
            assert "\n" not in str(caught.value)
    with Lake.open(url, source="parts") as lake:
        assert ids(lake.messages()) == expected()


def test_a_table_that_is_written_again_is_not_damaged(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (table / "tables/messages/one.parquet").unlink()
    snapshot = TableSnapshot(
        (ObjectMeta("tables/messages/one.parquet", 9, "", EARLY),), datetime(2026, 1, 2, tzinfo=UTC)
    )
    monkeypatch.setattr(reader, "read_table_snapshot", AsyncMock(side_effect=[snapshot, None]))
    with (
        Lake.open(str(table)) as lake,
        pytest.raises(StoreError, match=r"was written again .*: run the query"),
    ):
        lake.messages().to_arrow()


@pytest.mark.parametrize(
    ("damage", "kind", "sentence"),
    [
        (
            lambda body: body[:500],
            "replaced",
            r"part-0000\d\.parquet was replaced while .*: run the query again$",
        ),
        (lambda _: None, "removed", r"part-0000\d\.parquet was removed while .*: run the query again$"),
        (
            lambda body: body[:500],
            "damaged",
            "a part of the lake cannot be read: `imbrace-lake verify` names it$",
        ),
    ],
)
def test_a_part_that_changes_while_it_is_read_is_one_sentence(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, kind: str, sentence: str
) -> None:
    shutil.copytree(made, tmp_path / "lake")
    path = next((tmp_path / "lake/messages").glob("*/conv=conv_2/*"))

    def change() -> None:
        body = damage(path.read_bytes())
        path.unlink() if body is None else path.write_bytes(body)

    def dataset_of(*arguments: Any) -> Any:
        if kind != "damaged":
            change()
        return files.dataset_of(*arguments)

    monkeypatch.setattr(reader, "dataset_of", dataset_of)
    if kind == "damaged":
        change()
    with Lake.open(str(tmp_path / "lake")) as lake:
        with pytest.raises(StoreError, match=sentence) as caught:
            lake.messages(columns="text").to_arrow()
        assert "\n" not in str(caught.value)


def test_a_lake_without_a_table_says_so(made: Path) -> None:
    with Lake.open(str(made), source="table") as lake, pytest.raises(InputError, match="no compacted table"):
        lake.messages().to_arrow()


@pytest.mark.slow
def test_a_compacted_lake_is_read_from_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(SandboxOptions(conversations=5, messages_max=30)) as box:
        bench = Bench(box, str(tmp_path / "lake"))
        bench.run()
        compacted_at = bench.now + timedelta(milliseconds=500)
        compact(bench, compacted_at)
        names = [*box.conversations]
        box.append(names[0], 3)
        box.edit(names[1], 2)
        bench.run()
    with Lake.open(bench.lake) as lake, Lake.open(bench.lake, source="parts") as parts:
        old = lake.messages()
        before = as_rows(old.to_arrow())
        assert (old.source, old.as_of) == ("table", compacted_at)
        assert before == as_rows(parts.messages(as_of=old.as_of).to_arrow())
        # A query over the table and the ledgers sees one state of the lake, that of the table.
        for counted in lake.conversations().to_arrow().to_pylist():
            assert counted["messages"] == counted["server_count"]
            assert counted["verified_at"] <= compacted_at
        together = lake.sql("SELECT DISTINCT r.finished_at FROM runs AS r, messages")
        assert together.to_arrow().num_rows == 1
        assert (together.source, together.as_of) == ("table", compacted_at)
        runs = lake.runs()
        assert runs.to_arrow().num_rows == 2
        new = parts.messages()
        assert before != as_rows(new.to_arrow())
        last_end = max(row["finished_at"] for row in bench.ledger("runs"))
        assert (new.source, new.as_of) == ("parts", last_end)
        assert (runs.source, runs.as_of) == ("ledgers", last_end)
        earlier = bench.now - timedelta(seconds=1, milliseconds=1)
        assert lake.messages(as_of=earlier).to_arrow().num_rows == 0
        compact(bench)
        assert as_rows(lake.messages().to_arrow()) == as_rows(parts.messages().to_arrow())
        query = "FROM episodes ORDER BY ALL"
        assert lake.sql(query).to_arrow() == parts.sql(query).to_arrow()
        # Without the package `deltalake`.
        monkeypatch.setitem(sys.modules, "deltalake", None)
        result = lake.messages()
        assert as_rows(result.to_arrow()) == as_rows(parts.messages().to_arrow())
        assert result.source == "parts"
    with Lake.open(bench.lake, source="table") as lake, pytest.raises(InputError, match="package deltalake"):
        lake.messages().to_arrow()


# -- as of a time ---------------------------------------------------------------------------------


def as_rows(table: pa.Table) -> Rows:
    rows: Rows = table.sort_by([("conversation_id", "ascending"), ("message_id", "ascending")]).to_pylist()
    return rows


@pytest.mark.slow
def test_as_of_any_time_equals_a_replay_of_the_runs(tmp_path: Path) -> None:
    rng = Random(5)
    with Sandbox(SandboxOptions(conversations=6, messages_max=30, publishers=True)) as box:
        bench = Bench(box, str(tmp_path / "lake"), settings={"rewalk_days": 0})
        names = [*box.conversations]
        replay: list[tuple[datetime, Rows]] = []
        for number in range(12 if IS_FULL else 8):
            for one in rng.sample(names[: 3 + number // 2], 2):
                box.append(one, rng.randrange(3))
                box.edit(one, 2)
                if number % 3 == 1:
                    box.delete(one, 1)
            # A message that was deleted comes back.
            if number % 4 == 3:
                box.restore(names[0])
            bench.run(names[: 3 + number // 2])
            bench.now += timedelta(milliseconds=rng.randrange(5_000))
            replay.append((max(row["finished_at"] for row in bench.ledger("runs")), as_rows(bench.rows())))
    with Lake.open(str(tmp_path / "lake")) as lake:
        assert lake.revisions().to_arrow().num_rows > 10
        begin, end = replay[0][0] - timedelta(seconds=2), replay[-1][0] + timedelta(seconds=2)
        instants = [begin + (end - begin) * rng.random() for _ in range(INSTANTS)]
        for instant in [*instants, *(moment for moment, _ in replay)]:
            found = as_rows(lake.messages(as_of=instant, deleted=True).to_arrow())
            earlier = [rows for moment, rows in replay if moment <= instant]
            assert found == (earlier[-1] if earlier else [])
        current = lake.messages(as_of=end).to_arrow()
        assert current.num_rows == lake.messages().to_arrow().num_rows < len(replay[-1][1])


def test_as_of_before_an_edit_that_a_compaction_met_has_the_version_before_it(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=2, messages_max=30)) as box:
        bench = Bench(box, str(tmp_path / "lake"))
        bench.run()
        first = bench.now
        before = as_rows(bench.rows())
        box.edit(next(iter(box.conversations)), 1)
        bench.run()
        # The run edited a part after the compaction had begun and before it listed the parts.
        compact(bench, first + timedelta(milliseconds=500))
    with Lake.open(bench.lake) as lake:
        found = lake.messages(as_of=first)
        assert as_rows(found.to_arrow()) == before
        assert found.source == "table"


def test_a_revision_of_a_killed_run_does_not_double_a_message(tmp_path: Path) -> None:
    from imbrace_lake.lake.ledger_schema import REVISIONS

    write_lake(tmp_path / "lake", ROWS[:5], [], [])
    replaced_at = ROWS[0]["last_changed_at"] + timedelta(hours=2)
    row = {**ROWS[0], "replaced_at": replaced_at, "replaced_by_run_id": "killed"}
    journal = tmp_path / "lake/journal/killed/revisions"
    journal.mkdir(parents=True)
    body = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row], schema=REVISIONS), body)
    from imbrace_lake.lake.ledger import named_by_hash

    name = named_by_hash("one", body.getvalue().to_pybytes())
    (journal / name).write_bytes(body.getvalue().to_pybytes())
    with Lake.open(str(tmp_path / "lake")) as lake:
        assert lake.revisions().to_arrow().num_rows == 1
        as_of = replaced_at - timedelta(hours=1)
        assert lake.messages(as_of=as_of, deleted=True).to_arrow().num_rows == 5


# -- S3 -------------------------------------------------------------------------------------------


def in_memory(folder: Path) -> str:
    """Copy a lake into the memory of this process; return its URL."""
    root = f"{uuid4().hex}/lake"
    for path in folder.rglob("*"):
        if path.is_file():
            fsspec.filesystem("memory").pipe(f"/{root}/{path.relative_to(folder)}", path.read_bytes())
    return f"memory://{root}"


def upload(made: Path, s3: Seaweed, bucket: str) -> None:
    client = s3.client()
    for path in made.rglob("*"):
        if path.is_file():
            client.put_object(Bucket=bucket, Key=f"lake/{path.relative_to(made)}", Body=path.read_bytes())


# Results that are begun, or not, and never read to their end.
NOT_READ = """
import sys
from pydantic import SecretStr
from imbrace_lake import Lake
from imbrace_lake.store.contract import StoreOptions

url, endpoint, key, secret, batches = sys.argv[1:]
options = StoreOptions(endpoint_url=endpoint, key=SecretStr(key), secret=SecretStr(secret))
lake = Lake.open(url, options=options)
readers = [lake.messages().to_reader(1), lake.sql("FROM messages").to_reader(1)]
for reader in readers[:int(batches)]:
    reader.read_next_batch()
print("read")
"""


@pytest.mark.parametrize("begun", ["0", "2"])
def test_results_on_s3_that_are_not_read_to_their_end_do_not_stop_the_process(
    made: Path, s3: Seaweed, bucket: str, begun: str
) -> None:
    upload(made, s3, bucket)
    ended = subprocess.run(
        [sys.executable, "-c", NOT_READ, f"s3://{bucket}/lake", s3.endpoint_url, s3.key, s3.secret, begun],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "read\n", "")


# The bucket allows no reading of messages.
DENIED = """
import faulthandler, sys
from pydantic import SecretStr
from imbrace_lake import Lake
from imbrace_lake.errors import StoreError
from imbrace_lake.store.contract import StoreOptions
from imbrace_lake.store.s3 import S3Store

faulthandler.dump_traceback_later(60, exit=True)
url, endpoint, key, secret = sys.argv[1:]
get = S3Store.get

async def denied(store, name):
    if name.startswith("messages/"):
        raise StoreError("access denied")
    return await get(store, name)

S3Store.get = denied
options = StoreOptions(endpoint_url=endpoint, key=SecretStr(key), secret=SecretStr(secret))
for _ in range(3):
    try:
        Lake.open(url, options=options).sql("SELECT count(text) FROM messages").to_arrow()
    except StoreError as exc:
        print(exc)
"""


def test_a_lake_whose_messages_may_not_be_read_ends_with_one_sentence(
    made: Path, s3: Seaweed, bucket: str
) -> None:
    upload(made, s3, bucket)
    ended = subprocess.run(
        [sys.executable, "-c", DENIED, f"s3://{bucket}/lake", s3.endpoint_url, s3.key, s3.secret],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "access denied\n" * 3, "")


@pytest.mark.slow
def test_a_table_of_phones_that_may_not_be_read_is_not_called_damaged(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made, tmp_path / "lake")

    async def compact_tables() -> None:
        async with open_lake(str(tmp_path / "lake"), now=None) as lake:
            await compact_lake(lake, "compaction", lambda: datetime.now(UTC))

    asyncio.run(compact_tables())
    with Lake.open(in_memory(tmp_path / "lake")) as lake:
        store = lake._connection.session().lake.store
        get = store.get

        async def denied(key: str) -> bytes:
            if key.startswith("tables/phones/part-"):
                raise StoreError("access denied")
            return await get(key)

        monkeypatch.setattr(store, "get", denied)
        with pytest.raises(StoreError, match=r"^access denied$"):
            lake.messages(phones=NUMBER).to_arrow()


# Results that are not begun, or begun, when their lake is closed.
CLOSED = """
import faulthandler, sys
from pydantic import SecretStr
from imbrace_lake import Lake
from imbrace_lake.errors import StoreError
from imbrace_lake.store.contract import StoreOptions

faulthandler.dump_traceback_later(60, exit=True)
url, endpoint, key, secret = sys.argv[1:]
options = StoreOptions(endpoint_url=endpoint, key=SecretStr(key), secret=SecretStr(secret))
with Lake.open(url, options=options) as lake:
    results = [lake.messages(), lake.phones(), lake.sql("FROM documents")]
    readers = [result.to_reader(1) for result in results]
    readers[2].read_next_batch()
for reader in readers:
    try:
        reader.read_all()
    except StoreError as exc:
        print(exc)
print(results[0].to_arrow().num_rows)
lake.close()
"""


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_an_open_result_of_a_closed_lake_ends_with_one_sentence(
    made: Path, s3: Seaweed, bucket: str, kind: str
) -> None:
    upload(made, s3, bucket)
    url = f"s3://{bucket}/lake" if kind == "s3" else str(made)
    ended = subprocess.run(
        [sys.executable, "-W", "default", "-c", CLOSED, url, s3.endpoint_url, s3.key, s3.secret],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"{reader.CLOSED}\n" * 3 + f"{len(expected())}\n"


def test_closing_ends_the_requests_under_way() -> None:
    loop = reader._Loop()
    begun = threading.Event()
    problems: list[str] = []

    async def wait() -> None:
        begun.set()
        await asyncio.sleep(3_600)

    def read() -> None:
        for _ in range(2):
            try:
                loop.run(wait())
            except StoreError as exc:
                problems.append(str(exc))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert begun.wait(30)
    loop.close()
    thread.join(30)

    assert problems == [reader.CLOSED] * 2


@pytest.mark.parametrize("most", [files.MAX_BYTES, 1])
def test_a_lake_on_s3_is_read_without_an_extension(
    made: Path, s3: Seaweed, bucket: str, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", most)
    upload(made, s3, bucket)
    with (
        Lake.open(f"s3://{bucket}/lake", options=options_for(s3), phone_key=KEY) as lake,
        Lake.open(str(made)) as local,
    ):
        assert ids(lake.messages()) == expected()
        assert ids(lake.messages(phones=[NUMBER])) == expected(
            keep=lambda row: row["conversation_id"] in ("conv_2", "conv_8")
        )
        for query in ("FROM episodes ORDER BY ALL", "FROM conversations ORDER BY ALL"):
            assert lake.sql(query).to_arrow() == local.sql(query).to_arrow()
