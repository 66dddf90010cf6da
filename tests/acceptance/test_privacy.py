"""Whatever happens in a run, no phone number, token or message text is written outside the lake."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import phonenumbers
import pyarrow.dataset as ds
import pytest
from phonenumbers import PhoneNumberFormat

from imbrace_cli.local_server import LocalServer
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.exporter import Exporter, Outcome, credentials, settings_for, write_phones
from tools.seaweed import Seaweed

TOKEN = "api_5ec4e75e-c4e7-45ec-8e75-5ec4e75ec4e7"
WRONG_TOKEN = "api_0dd0dd0d-d0dd-40dd-8d0d-0dd0dd0dd0dd"
# In every message text, and nowhere else.
MARK = "xylophonic-confession"
PHONES = [
    *("+886911425977", "+886922814063", "+85262602239", "+85291847365", "+6591827364"),
    *("+819048271635", "+447400918273", "+14152837465", "+4915128374651", "+5511928374659"),
]
WITHOUT_CONVERSATION = "+886933517284"
INVALID = [
    "+886 911 425 977 318 64",
    "0911-425-977 ext 41",
    "+999 8127 3645",
    "call 0922 814 063 now",
    "91827",
]
IMPATIENT = {"timeout_seconds": "0.5", "tries": "2", "task_retries": "1", "task_retry_seconds": "0.1",
             "tolerated_unreadable": "0.5"}  # fmt: skip
SILENCE_SECONDS = 3.0

pytestmark = pytest.mark.timeout(1_800)


@dataclass(frozen=True, slots=True)
class Aftermath:
    """The traces of all runs after their end."""

    outcomes: dict[str, Outcome]
    lakes: list[Path]
    masked_lake: Path
    haystack: dict[str, bytes]


@pytest.fixture(scope="module")
def aftermath(
    exporter: Exporter,
    prefect_server: LocalServer,
    s3: Seaweed,
    tmp_path_factory: pytest.TempPathFactory,
) -> Aftermath:
    """Run exports with all faults that could put requests, bodies and inputs into errors."""
    folder = tmp_path_factory.mktemp("privacy")
    with Sandbox(SandboxOptions(conversations=0, token=TOKEN)) as box:
        ids = [box.put([*_items(number)], phone, f"conv_{number}") for number, phone in enumerate(PHONES)]
        phones = write_phones(folder / "list.txt", _spellings())
        lake, masked = folder / "lake", folder / "masked"
        environment = settings_for(box, lake, region="TW", **IMPATIENT)
        outcomes = {"complete": exporter.run(environment, phones=phones)}
        outcomes["masked"] = exporter.run(
            {**environment, "IMBRACE_LAKE": str(masked), "IMBRACE_MASK_PHONES": "true"}, phones=phones
        )

        faults = ("not_json", "html", "short", "cut_body", "stall_body", "500:json", "400", "404")
        for conversation_id, fault in zip(ids, faults, strict=False):
            box.break_conversation(conversation_id, fault)
        outcomes["partial"] = exporter.run(
            {**environment, "IMBRACE_LAKE": str(folder / "partial")}, phones=phones
        )
        for fault in ("400", "500:html", "not_json", "cut_before", "stall", "401", "403"):
            box.break_conversation("links", fault)
            lake_of_fault = folder / f"links-{fault.partition(':')[0]}"
            outcomes[f"links {fault}"] = exporter.run(
                {**environment, "IMBRACE_LAKE": str(lake_of_fault)}, phones=phones
            )
        box.repair("links")
        outcomes["wrong token"] = exporter.run({**environment, "IMBRACE_TOKEN": WRONG_TOKEN}, phones=phones)
        outcomes["unusable token"] = exporter.run(
            {**environment, "IMBRACE_TOKEN": f"{TOKEN}\n"}, phones=phones
        )
        outcomes["no column"] = exporter.run(environment, phones=phones, column="phone")
        outcomes["no bucket"] = exporter.run(
            {**environment, **credentials(s3), "IMBRACE_LAKE": "s3://no-such-bucket/lake"}, phones=phones
        )
    outcomes["no gateway"] = exporter.run(
        {**environment, "IMBRACE_LAKE": str(folder / "down")}, phones=phones
    )
    haystack = {
        **everything_of_prefect(prefect_server),
        "console": exporter.console.read_bytes(),
        "names of objects": "\n".join(str(each.relative_to(folder)) for each in folder.rglob("*")).encode(),
        "ledgers": b"".join(_rows_of_ledgers(folder)),
        "what the caller sees": repr(outcomes).encode(),
    }
    lakes = [each for each in folder.iterdir() if (each / "lake.json").exists()]
    return Aftermath(outcomes, lakes, masked, haystack)


def _items(number: int) -> Iterator[dict[str, object]]:
    for folder in range(130):
        yield {
            "_id": f"msg_{number}_{folder}",
            "conversation_id": f"conv_{number}",
            "organization_id": "org_sandbox",
            "from": "con_1",
            "type": "text",
            "content": {"text": f"{MARK} {number}.{folder}", "is_mail": False},
            "created_at": f"2024-05-13T13:{folder // 60:02}:{folder % 60:02}.000Z",
            "updated_at": f"2024-05-13T13:{folder // 60:02}:{folder % 60:02}.000Z",
        }


def _spellings() -> list[str]:
    numbers = [phonenumbers.parse(phone) for phone in (*PHONES, WITHOUT_CONVERSATION)]
    lines = [phonenumbers.format_number(number, PhoneNumberFormat.INTERNATIONAL) for number in numbers]
    return [*lines, PHONES[0], PHONES[1][1:], "0911425977", "0922-814-063", *INVALID]


def everything_of_prefect(server: LocalServer) -> dict[str, bytes]:
    """Return all files of the server, and its database as text, as its file may split a value."""
    database = server.directory / "prefect.db"
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        _wait_until_all_is_recorded(connection)
        dump = "\n".join(connection.iterdump()).encode("utf-8", "surrogatepass")
    finally:
        connection.close()
    files = {each.name: each.read_bytes() for each in server.directory.rglob("*") if each.is_file()}
    assert database.name in files
    return {**files, "dump of the database": dump}


def _wait_until_all_is_recorded(connection: sqlite3.Connection) -> None:
    """Wait until the server has recorded logs and events, which takes a few seconds."""
    before, since = None, time.monotonic()
    while time.monotonic() - since < SILENCE_SECONDS:
        counts = [
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
            for table in ("log", "task_run", "task_run_state", "flow_run_state", "events", "artifact")
        ]
        if counts != before:
            before, since = counts, time.monotonic()
        time.sleep(0.2)


def _rows_of_ledgers(folder: Path) -> Iterator[bytes]:
    """Yield all ledgers but messages and phones, which contain texts and numbers by design."""
    for path in folder.rglob("*.parquet"):
        if path.relative_to(folder).parts[1] not in ("messages", "phones"):
            yield repr(ds.dataset(path).to_table().to_pylist()).encode()


def _needles() -> set[str]:
    """Return every form in which a number, a token or a text could appear."""
    forms = (PhoneNumberFormat.INTERNATIONAL, PhoneNumberFormat.NATIONAL, PhoneNumberFormat.RFC3966)
    needles = {MARK, TOKEN, WRONG_TOKEN, *_spellings()}
    for phone in (*PHONES, WITHOUT_CONVERSATION):
        number = phonenumbers.parse(phone)
        written = {phonenumbers.format_number(number, form) for form in forms}
        needles |= {phone[1:], *written}
        needles |= {digits for each in written if len(digits := "".join(filter(str.isdigit, each))) > 9}
    return needles - {"91827"}  # five digits can occur by chance


def test_the_runs_ended_as_expected(aftermath: Aftermath) -> None:
    states = {name: outcome.state_name for name, outcome in aftermath.outcomes.items()}

    assert states.pop("complete") == states.pop("masked") == "Completed with unreadable input"
    assert states.pop("partial") == "Partial"
    assert set(states.values()) == {"Failed"}
    assert all(outcome.message for outcome in aftermath.outcomes.values())


def test_the_searched_files_contain_the_traces_of_the_runs(aftermath: Aftermath) -> None:
    dump = aftermath.haystack["dump of the database"].decode()

    # A log line, a dead letter of an artifact, the name of a task run and of a flow run.
    for trace in ("exported conversation=", "not exported conversation=", "resolve-phones-1-of-1"):
        assert trace in dump
    assert "export-failures" in dump
    assert "export list.txt" in dump
    assert b"status" in aftermath.haystack["ledgers"]


def test_phone_numbers_tokens_and_texts_are_only_in_messages_and_phones(aftermath: Aftermath) -> None:
    found = [
        (folder, needle)
        for folder, hay in aftermath.haystack.items()
        for needle in _needles()
        if needle.encode() in hay
    ]

    assert found == []


def test_no_secret_of_the_store_is_anywhere(aftermath: Aftermath, s3: Seaweed) -> None:
    assert [folder for folder, hay in aftermath.haystack.items() if s3.secret.encode() in hay] == []


def test_the_phones_ledger_contains_the_numbers_unless_they_are_masked(aftermath: Aftermath) -> None:
    plain = ds.dataset(aftermath.lakes[0].parent / "lake" / "phones").to_table().to_pylist()
    masked = ds.dataset(aftermath.masked_lake / "phones").to_table().to_pylist()

    assert set(PHONES) <= {row["phone"] for row in plain}
    assert {row["status"] for row in masked} == {"resolved", "none", "duplicate", "invalid"}
    assert all(row["phone"] is None for row in masked)
    text = repr(masked)
    assert [needle for needle in _needles() if needle in text] == []
    # Also not in the bytes of the files, whose statistics repeat values.
    for path in aftermath.masked_lake.rglob("phones/*.parquet"):
        assert [needle for needle in _needles() if needle.encode() in path.read_bytes()] == []
    assert {row["phone_masked"] for row in masked if row["status"] == "none"} == {"+886*******84"}
