"""Every engine reads 8,204 exported real conversations message by message.

By default only the first of them, from a disk and from S3.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.engines import ENGINES, dataset
from tests.acceptance.exporter import Exporter, Outcome, credentials, settings_for, write_phones
from tests.acceptance.scale import IS_FULL
from tools.seaweed import Seaweed

CONVERSATIONS = 8_204
MESSAGES = 181_949
ON_DISK, ON_S3 = (CONVERSATIONS, CONVERSATIONS) if IS_FULL else (2_000, 500)

logger = logging.getLogger(__name__)

pytestmark = pytest.mark.timeout(900)

Texts = list[tuple[str, ...]]
"""The texts of a conversation in order; texts of the same instant, which have no order, are a group."""


@dataclass(frozen=True, slots=True)
class Served:
    """The conversations of the fake gateway, and the contents of their file."""

    box: Sandbox
    phones: list[str]
    texts: Mapping[str, Texts]

    @property
    def messages(self) -> int:
        return sum(len(group) for texts in self.texts.values() for group in texts)


@dataclass(frozen=True, slots=True)
class Exported:
    """A lake with all conversations of the fake gateway."""

    served: Served
    lake: str
    outcome: Outcome
    s3: Seaweed | None


@contextmanager
def _serving(file: Path) -> Iterator[Served]:
    """Serve a complete file, and read it separately without the code of the fake gateway."""
    with Sandbox(SandboxOptions(file=file)) as box:
        # The fake gateway names conversations in the order of the file.
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            texts = dict(zip(box.conversations, map(_texts_of, lines), strict=True))
        yield Served(box, box.messy_phones(), texts)


def _first(file: Path, conversations: int, folder: Path) -> Path:
    """Return a file with the first conversations of another."""
    first = folder / "first.jsonl.gz"
    with gzip.open(file, "rb") as lines, gzip.open(first, "wb", compresslevel=1) as some:
        some.writelines(islice(lines, conversations))
    return first


def _texts_of(line: str) -> Texts:
    messages = json.loads(line)["messages"]
    if messages[0]["at"] is None:
        return [(message["text"],) for message in messages]
    timed = sorted((datetime.fromisoformat(message["at"]), message["text"]) for message in messages)
    return [tuple(text for _, text in group) for _, group in groupby(timed, key=lambda pair: pair[0])]


@pytest.fixture(scope="module")
def on_disk(
    real_conversations: Path, exporter: Exporter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exported]:
    """Export the first conversations to a local folder."""
    folder = tmp_path_factory.mktemp("real")
    with _serving(_first(real_conversations, ON_DISK, folder)) as served:
        yield _export(served, exporter, folder, str(folder / "lake"))


@pytest.fixture(scope="module")
def on_s3(
    real_conversations: Path, exporter: Exporter, s3: Seaweed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exported]:
    """Export the first conversations to SeaweedFS."""
    folder = tmp_path_factory.mktemp("real")
    s3.create_bucket("real-conversations")
    with _serving(_first(real_conversations, ON_S3, folder)) as served:
        yield _export(served, exporter, folder, "s3://real-conversations/lake", s3)


@pytest.fixture(params=["on_disk", "on_s3"])
def exported(request: pytest.FixtureRequest) -> Exported:
    """Return each of the two lakes."""
    lake: Exported = request.getfixturevalue(request.param)
    return lake


def _export(
    served: Served, exporter: Exporter, folder: Path, lake: str, s3: Seaweed | None = None
) -> Exported:
    phones = write_phones(folder / "phones.txt", served.phones)
    environment = settings_for(served.box, lake) | (credentials(s3) if s3 else {})
    outcome = exporter.run(environment, phones=phones)
    logger.info("exported to=%s seconds=%.1f totals=%s", lake, outcome.seconds, outcome.totals)
    return Exported(served, lake, outcome, s3)


def test_the_numbers_are_those_of_the_file(real_conversations: Path) -> None:
    with gzip.open(real_conversations, "rb") as lines:
        lengths = [len(json.loads(line)["messages"]) for line in lines]

    assert (len(lengths), sum(lengths)) == (CONVERSATIONS, MESSAGES)


def test_the_run_is_completed_and_reports_its_totals(exported: Exported) -> None:
    totals = exported.outcome.totals

    assert exported.outcome.state_type == "COMPLETED", exported.outcome.message
    assert totals["conversations"] == {"complete": len(exported.served.texts)}
    assert totals["messages_new"] == totals["messages_total"] == exported.served.messages


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_reads_each_message_once_with_the_text_of_the_source(
    engine: str, exported: Exported
) -> None:
    served = exported.served

    rows = ENGINES[engine](f"{exported.lake}/messages", exported.s3)

    assert rows.num_rows == served.messages
    assert pc.count_distinct(rows.column("message_id")).as_py() == served.messages
    found = _texts_in(rows)
    # Not `==` of the dictionaries, because printing their difference would take minutes.
    assert found.keys() == served.texts.keys()
    assert [each for each, texts in served.texts.items() if found[each] != texts] == []


def _texts_in(rows: pa.Table) -> dict[str, Texts]:
    """Return the texts of each conversation in the order of `created_at`, sorted within an instant."""
    order = pc.sort_indices(
        rows, sort_keys=[(name, "ascending") for name in ("conversation_id", "created_at", "text")]
    )
    columns = rows.take(order).select(["conversation_id", "created_at", "text"])
    ids, times, texts = (
        column.cast(pa.int64()).to_pylist() if pa.types.is_timestamp(column.type) else column.to_pylist()
        for column in columns.columns
    )
    found: dict[str, Texts] = {}
    for (conversation_id, _), group in groupby(zip(ids, times, texts, strict=True), key=lambda row: row[:2]):
        found.setdefault(conversation_id, []).append(tuple(text for *_, text in group))
    return found


def test_the_phones_ledger_gives_each_input_number_one_status_and_the_fake_gateways_links(
    exported: Exported,
) -> None:
    served = exported.served
    rows = _phones_ledger(exported)

    positions = [row["position"] for row in rows]
    assert len(set(positions)) == len(rows) == len(served.phones) - served.phones.count("")
    links = served.box.links
    expected: dict[int, tuple[str, frozenset[str]]] = {}
    seen: set[str] = set()
    for line_number, line in enumerate(served.phones, start=1):
        if not line:
            continue
        phone = "+" + re.sub(r"\D", "", line)
        if phone not in links:
            expected[line_number] = ("invalid", frozenset())
        elif phone in seen:
            expected[line_number] = ("duplicate", frozenset())
        else:
            expected[line_number] = ("resolved" if links[phone] else "none", frozenset(links[phone]))
        seen.add(phone)
    reported = {row["position"]: (row["status"], frozenset(row["conversation_ids"] or ())) for row in rows}
    assert reported == expected
    statuses = Counter(status for status, _ in expected.values())
    assert exported.outcome.totals["phones"] == dict(statuses)
    assert statuses.keys() == {"resolved", "none", "invalid", "duplicate"}


def _phones_ledger(exported: Exported) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = dataset(f"{exported.lake}/phones", exported.s3).to_table().to_pylist()
    return rows
