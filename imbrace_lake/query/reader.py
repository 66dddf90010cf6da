"""`imbrace_lake.Lake`: a lake for readers, synchronous and lazy, without any way to write.

`imbrace_lake.lake.lake.Lake` is the lake of the runs that write it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
import weakref
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Literal, Never, Self, TypeVar, get_args

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.concurrency import run_bounded
from imbrace_lake.errors import DamagedObject, InputError, SettingsError, StoreError
from imbrace_lake.gateway.ids import canonical_conversation_id
from imbrace_lake.lake import lake as lakes
from imbrace_lake.lake.ledger import last_of_each, read_last_end, read_ledger
from imbrace_lake.lake.ledger_schema import LEDGER_SCHEMAS, LEDGERS, Ledger
from imbrace_lake.lake.schema import SCHEMA
from imbrace_lake.phones.numbers import PhoneNumber, mask, parse_phone, parse_region
from imbrace_lake.printable import printable
from imbrace_lake.query.arguments import (
    address,
    check_characters,
    check_id,
    check_time,
    check_type,
    kind,
    parameter_values,
    texts,
)
from imbrace_lake.query.dialects import DuckDB
from imbrace_lake.query.engine import Engine, names_in
from imbrace_lake.query.files import dataset_of
from imbrace_lake.query.numbers import Answers
from imbrace_lake.query.result import Result, Rows
from imbrace_lake.query.table import read_table_snapshot
from imbrace_lake.query.views import View, ViewSettings, used_by, views
from imbrace_lake.store.contract import ObjectMeta, StoreOptions
from imbrace_lake.store.factory import open_store
from imbrace_lake.tables.cleaning import again
from imbrace_lake.tables.messages import FOLDER

T = TypeVar("T")
# Of the names that a warning contains.
MAX_NAMED = 5
Source = Literal["table", "parts"]
CLOSED = "the lake was closed while this result was being read: read it inside the `with` block"
FORKED = (
    "this process was forked from the one that opened the lake: start processes by spawn or forkserver, and"
    " call Lake.open(…) in each"
)

_ROLE = "CASE WHEN substr(sender_id, 1, 4) = 'pub_' THEN 'bot' ELSE sender_role END AS sender_role"
# Columns in which two rows of a ledger are equal that are the same row, and their time.
_VERSIONS: dict[Ledger, tuple[list[str], str]] = {
    "runs": (["run_id"], "finished_at"),
    "revisions": (["organization_id", "conversation_id", "message_id", "replaced_at"], "replaced_at"),
}

# When each row was known.
_KNOWN_AT: dict[Ledger, str] = {
    "phones": "resolved_at",
    "conversations": "finished_at",
    "runs": "finished_at",
    "revisions": "replaced_at",
    "shapes": "seen_at",
}

# The sources of the views; None for the messages.
_SOURCES: dict[str, Ledger | None] = {"lake_messages": None} | {f"lake_{name}": name for name in LEDGERS}
# Ledgers whose rows a query sees as they are.
_ONLY_LEDGERS: tuple[Ledger, ...] = ("runs", "revisions", "shapes")


@dataclass(frozen=True)
class _Messages:
    """The messages that a query reads.

    Attributes:
        source, as_of: Those of the result.
        dataset: The rows.
        objects: The objects that have them.
        prefixes: The folders that were listed.
    """

    source: Source
    as_of: datetime | None
    dataset: Any
    objects: Sequence[ObjectMeta]
    prefixes: Sequence[str]

    def conversation_folders(self) -> set[str]:
        """Return the names of the folders of chosen conversations that have messages.

        Raises:
            StoreError: The table cannot be read.
        """
        if self.source == "parts":
            return {part.key.rsplit("/", 2)[1] for part in self.objects}
        found: set[str] = set()
        try:
            for batch in self.dataset.to_batches(columns=["conversation_id"]):
                found.update(batch.column(0).unique().to_pylist())
        except (pa.ArrowException, OSError) as exc:
            raise StoreError(str(exc)) from exc
        return {*map(_folder, found)}

    async def problem(self, lake: lakes.Lake, reason: str) -> StoreError:
        """Return why they cannot be read, in one sentence with what to do.

        Args:
            lake: The open lake.
            reason: The error of the engine.
        """
        listings = [await lake.store.list(prefix) for prefix in self.prefixes]
        there = {meta.key: meta for listing in listings for meta in listing}
        # Some errors name the object.
        named = [one.key for one in self.objects if one.key.rsplit("/", 1)[1] in reason]
        if self.source == "table":
            newest = await read_table_snapshot(lake)
            if newest is None or {*newest.files} != {*self.objects}:
                return StoreError(
                    "the compacted table was written again while the query read it: run the query again"
                )
            sizes = {key: meta.size_bytes for key, meta in there.items()}
            wrong = [one for one in self.objects if sizes.get(one.key) != one.size_bytes]
            found = f"{lake.url}/{named[0]}" if len(named) == 1 else f"a file in {lake.url}/{FOLDER}"
            problem = f"{found} is damaged"
            if wrong:
                size = sizes.get(wrong[0].key)
                what = "is missing" if size is None else f"has {size:,} bytes, not {wrong[0].size_bytes:,}"
                problem = f"{lake.url}/{wrong[0].key} {what}"
            return DamagedObject(
                f"{problem}: {again(FOLDER)}, and read the parts until then (--source parts; in Python,"
                " source='parts')"
            )
        for one in self.objects:
            if there.get(one.key) != one:
                what = "replaced" if one.key in there else "removed"
                return StoreError(
                    f"{lake.url}/{one.key} was {what} while the query read it: run the query again"
                )
        # The names of parts are the same in each folder.
        return DamagedObject("a part of the lake cannot be read: `imbrace-lake verify` names it")


class Lake:
    """A lake to read: a folder, or `s3://bucket/prefix`.

    Nothing is read before a result is used. Results are lazy, and each use reads the lake again. The
    compacted table is read if the lake has one, else the parts. A lake can be used in a `with` block, which
    closes its connections; otherwise they close with the object.

    All methods that return a `Result` raise these errors when the result is used:

    Raises:
        InputError: There is no lake, a query is wrong, or the lake has only other organizations.
        SettingsError: DuckDB is not installed.
        StoreError: The lake cannot be read, or was closed while the result was being read.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        organization: str | None,
        settings: ViewSettings,
        source: Source | None,
        options: StoreOptions | None,
        phone_key: bytes | None,
    ) -> None:
        url = address(url)
        check_type("organization", organization, str, "a text")
        if organization is not None:
            check_id("the organization's id", organization)
        check_type("settings", settings, ViewSettings, "ViewSettings")
        check_type("options", options, StoreOptions, "StoreOptions")
        check_type("phone_key", phone_key, bytes, "bytes")
        if source is not None and source not in get_args(Source):
            raise SettingsError(
                "source must be 'table' or 'parts'; leave it out for the table if there is one"
            )
        self.url = open_store(url, options).url
        self.settings = settings
        self._organization = organization
        self._is_organization_checked = organization is None
        self._source = source
        self._phone_key = phone_key
        self._connection = _Connection(url, options)

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str],
        *,
        organization: str | None = None,
        settings: ViewSettings | None = None,
        source: Source | None = None,
        options: StoreOptions | None = None,
        phone_key: bytes | None = None,
    ) -> Lake:
        """Return a lake to read, without reading anything yet.

        Args:
            url: A folder, as text or `Path`, `s3://bucket/prefix`, or the URL of an installed fsspec driver.
            organization: Read only this organization; all by default.
            settings: Time zone, gap, business hours and bots of the views.
            source: Read the compacted `table` or the `parts`; by default the table if there is one, and the
                parts, which can be newer, of chosen conversations and phone numbers.
            options: How to reach an S3 store; by default, as the AWS settings of this machine state.
            phone_key: The key of the phone numbers' hashes, if the lake was written with
                `IMBRACE_PHONE_KEY`.

        Raises:
            SettingsError: The URL cannot be that of a lake, or another argument is wrong.
        """
        return cls(
            url,
            organization=organization,
            settings=ViewSettings() if settings is None else settings,
            source=source,
            options=options,
            phone_key=phone_key,
        )

    def __enter__(self) -> Self:
        """Return the lake."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections; a later use opens new ones.

        What is still read from open results, such as readers and batches, ends with a `StoreError`.
        """
        self._connection.close()

    def __repr__(self) -> str:
        """Show the address, which has no credentials."""
        return f"Lake.open({self.url!r})"

    def __reduce__(self) -> Never:
        """Reject pickling: the object has connections, and can have keys that belong into no file.

        Raises:
            TypeError: Always.
        """
        raise TypeError("a Lake cannot be pickled or copied: call Lake.open(…) again where it is needed")

    def messages(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        conversations: str | Iterable[str] | None = None,
        phones: str | Iterable[str] | None = None,
        region: str | None = None,
        columns: str | Iterable[str] | None = None,
        deleted: bool = False,
        as_of: datetime | None = None,
    ) -> Result:
        """Return messages, with the columns and types of the lake.

        Of conversations that are given, by id or phone number, only the folders are read, whose parts can be
        newer than the table; with `source="table"`, the table is filtered. Times are compared with the
        statistics of each object before it is read. A single text is the same as a list with only this text.
        A conversation or a number that the lake does not have is a `UserWarning`.

        Args:
            since, until: Only messages created at or after the first and before the second time.
            conversations: Only these conversations, by id in any spelling.
            phones: Only conversations of these numbers: all that any run has resolved for them, also those
                that the latest answer does not name any more. A number is found by its hash and, where the
                lake has it, by itself, so also in rows with hashes by another key.
            region: The country of numbers without a country code, such as ``TW``.
            columns: The columns; all by default.
            deleted: Include messages that are deleted upstream.
            as_of: Return what the lake said at this time, with the versions and deletions that were known
                then; for `phones`, the conversations of the answers that were known then.

        Raises:
            SettingsError: A column does not exist, a time has no time zone, `since` is not before `until`, or
                an argument has another type.
            InvalidPhoneNumber: A number is not a phone number.
            UsageError: There is no such region.
        """
        for name, moment in {"since": since, "until": until, "as_of": as_of}.items():
            check_time(name, moment)
        if since is not None and until is not None and since >= until:
            raise SettingsError(f"since must be before until: {since.isoformat()}, {until.isoformat()}")
        if not isinstance(deleted, bool):
            raise SettingsError(f"deleted must be True or False, and is {kind(deleted)}")
        names = SCHEMA.names if columns is None else texts("columns", columns, "text")
        if unknown := {*names} - {*SCHEMA.names}:
            raise SettingsError(
                f"messages have no column {min(unknown)!r}: the columns are {', '.join(SCHEMA.names)}"
            )
        if not names or len({*names}) < len(names):
            raise SettingsError("columns must name each column once, and at least one; leave it out for all")
        ids, numbers = _chosen(conversations, phones, region)
        condition, values = _conditions(since=since, until=until, deleted=deleted)
        selected = ", ".join(f'"{name}"' for name in names)
        if as_of is None:
            rows = f"SELECT * REPLACE ({_ROLE}) FROM lake_messages"  # noqa: S608 - from constants
        else:
            rows, values = _AS_OF, {**values, "as_of": as_of}
        query = f"SELECT {selected} FROM ({rows}) WHERE {condition}"  # noqa: S608 - from names of columns

        @contextmanager
        def read(size: int) -> Iterator[Rows]:
            wanted = self._wanted(ids, numbers, as_of)
            with self._query(
                query, values, size, conversations=wanted, named=ids, as_of=as_of, with_views=False
            ) as rows:
                yield rows

        return Result(read, pa.schema([SCHEMA.field(name) for name in names]))

    def conversations(self) -> Result:
        """Return one row for each conversation: counts, times, roles, response times and verdict."""
        return self.sql("SELECT * FROM conversations")

    def phones(self) -> Result:
        """Return the latest answer for each phone number; a failed request only if there is no answer."""
        return self.sql("SELECT * FROM phones")

    def runs(self) -> Result:
        """Return the runs that ended."""
        return self.sql("SELECT * FROM runs")

    def revisions(
        self,
        *,
        conversations: str | Iterable[str] | None = None,
        phones: str | Iterable[str] | None = None,
        region: str | None = None,
    ) -> Result:
        """Return the earlier versions of messages that were edited; of all by default.

        Args:
            conversations, phones, region: Only these conversations, as in `messages`.

        Raises:
            SettingsError: An argument has another type.
            InvalidPhoneNumber: A number is not a phone number.
            UsageError: There is no such region.
        """
        ids, numbers = _chosen(conversations, phones, region)

        @contextmanager
        def read(size: int) -> Iterator[Rows]:
            query, values = "SELECT * FROM revisions", {}
            if (wanted := self._wanted(ids, numbers, None)) is not None:
                query += " WHERE list_contains($ids, conversation_id)"
                values["ids"] = _all_spellings(wanted).to_pylist()
            with self._query(query, values, size) as rows:
                yield rows

        return Result(read, LEDGER_SCHEMAS["revisions"])

    def episodes(self) -> Result:
        """Return the episodes of conversations, with first responses."""
        return self.sql("SELECT * FROM episodes")

    def replies(self) -> Result:
        """Return the replies to contacts, with the ids of both messages."""
        return self.sql("SELECT * FROM replies")

    def sql(self, query: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None) -> Result:
        """Return the result of one query in DuckDB's SQL over the views.

        The query can read the lake and reach nothing else.

        Args:
            query: The query; `$name` stands for a parameter, or `?` for each in their order.
            parameters: The values of the parameters, by name or in their order.

        Raises:
            SettingsError: An argument has another type.
        """
        if not isinstance(query, str):
            raise SettingsError(f"the query must be a text, and is {kind(query)}")
        check_characters("the query", query)
        values = parameter_values(parameters)

        @contextmanager
        def read(size: int) -> Iterator[Rows]:
            with self._query(query, values, size) as rows:
                yield rows

        return Result(read)

    @contextmanager
    def _query(
        self,
        query: str,
        values: dict[str, Any] | list[Any],
        size: int,
        *,
        conversations: frozenset[str] | None = None,
        named: frozenset[str] | None = None,
        as_of: datetime | None = None,
        with_views: bool = True,
    ) -> Iterator[Rows]:
        """Run a query over the lake as it is now; `named` are the conversations that the caller named."""
        session = self._connection.session()
        if self._organization is not None and not self._is_organization_checked:
            session.run(_check_organization(session.lake, self._organization))
            self._is_organization_checked = True
        defined = self._views() if with_views else []
        used = used_by(names_in(query) if with_views else query, defined, _SOURCES)
        requests = _Requests(session)
        messages: _Messages | None = None
        source: str | None = None
        read_as_of: datetime | None = None
        if "lake_messages" in used:
            messages = session.run(self._messages(requests, conversations, as_of))
            if named and conversations is not None:
                with requests.explained(messages):
                    _warn_of_missing(messages, conversations, named)
            source, read_as_of = messages.source, messages.as_of
        elif used & _SOURCES.keys():
            source, read_as_of = "ledgers", session.run(read_last_end(session.lake))
        until = None
        # Messages of a table and later rows of the ledgers would be two states of the lake in one result.
        # Only `as_of` needs later ones: the table can have edits of a run during the compaction.
        if messages is not None and messages.source == "table" and as_of is None:
            until = messages.as_of
        sources: dict[str, Any] = {
            name: _LazyLedger(requests, ledger, self._organization, until)
            for name, ledger in _SOURCES.items()
            if ledger is not None
        }
        if messages is not None:
            sources["lake_messages"] = messages.dataset
        with Engine(sources, [view for view in defined if view.name in used]) as engine:
            with requests.explained(messages):
                rows = engine.query(query, values, size)
            batches = session.until_closed(requests.explain(rows.batches, messages))
            yield Rows(rows.schema, batches, source, read_as_of)

    def _views(self) -> list[View]:
        ledgers = [View(name, "", f"SELECT * FROM lake_{name}") for name in _ONLY_LEDGERS]  # noqa: S608
        return [*ledgers, *views(DuckDB(), self.settings)]

    async def _messages(
        self,
        requests: _Requests,
        conversations: frozenset[str] | None,
        as_of: datetime | None,
    ) -> _Messages:
        lake = requests.lake
        table = None
        if self._source != "parts":
            # Without the package that reads the table, the parts are read, and named as the source.
            with suppress(*(() if self._source == "table" else (InputError,))):
                table = await read_table_snapshot(lake)
        if table is None and self._source == "table":
            raise InputError(f"the lake at {lake.url} has no compacted table: read its parts")
        if table is not None and as_of is not None and as_of > table.as_of:
            if self._source == "table":
                raise InputError(
                    f"the table is as of {table.as_of.isoformat()}, before {as_of.isoformat()}: read parts"
                )
            table = None
        # A few folders are read sooner than the table.
        if table is not None and (conversations is None or self._source == "table"):
            rows = dataset_of(lake.store, requests.run, SCHEMA, table.files)
            if self._organization is not None:
                rows = rows.filter(pc.field("organization_id") == self._organization)
            if conversations is not None:
                rows = rows.filter(pc.field("conversation_id").isin(_all_spellings(conversations)))
            return _Messages("table", table.as_of, rows, table.files, [FOLDER])
        # Before the parts are listed, which then have everything that runs had written by then.
        last_end = await read_last_end(lake)
        folders = await self._folders(lake, conversations)
        parts: list[ObjectMeta] = []
        listings = (partial(lake.store.list, folder) for folder in folders)
        for listing in await run_bounded(min(lakes.READ_AT_A_TIME, len(folders)), listings):
            parts += (meta for meta in listing if lakes.is_part(meta.key))
        dataset = dataset_of(lake.store, requests.run, SCHEMA, parts)
        return _Messages("parts", last_end, dataset, parts, folders)

    async def _folders(self, lake: lakes.Lake, conversations: frozenset[str] | None) -> list[str]:
        """Return the folders with the messages of some conversations, or of all."""
        if conversations is None and self._organization is None:
            return [lakes.MESSAGES]
        if self._organization is None:
            organizations = await lake.list_organizations()
        else:
            organizations = [f"{lakes.MESSAGES}org={lakes.encoded(self._organization)}/"]
        if conversations is None:
            return organizations
        names = sorted(map(_folder, _all_spellings(conversations).to_pylist()))
        return [f"{organization}{name}/" for organization in organizations for name in names]

    def _wanted(
        self, ids: frozenset[str] | None, numbers: frozenset[PhoneNumber] | None, as_of: datetime | None
    ) -> frozenset[str] | None:
        """Return the conversations that a caller chose by id, by phone number or by both; None for all."""
        if numbers is None:
            return ids
        session = self._connection.session()
        lake = session.lake
        with_table = self._source != "parts"
        requests = _Requests(session)
        answers = Answers(lake, requests.run, with_table, self._organization, as_of)
        with requests.explained(None):
            # Runs use the key of the settings, and earlier runs may have used that of the lake.
            found = answers.resolve(numbers, {self._phone_key or lake.phone_key, lake.phone_key})
        when = "" if as_of is None else f" by {as_of.isoformat()}"
        _warn(
            f"no run has resolved these numbers{when}, or phone_key is missing, by which it hashed them",
            [*map(mask, found.unknown)],
        )
        _warn(
            "conversations of these numbers can be missing, because objects of the ledger are damaged",
            found.damaged,
        )
        if ids is None:
            return found.conversations
        return found.conversations & {*map(canonical_conversation_id, ids)}


def _chosen(
    conversations: str | Iterable[str] | None, phones: str | Iterable[str] | None, region: str | None
) -> tuple[frozenset[str] | None, frozenset[PhoneNumber] | None]:
    """Return the ids and the numbers of arguments.

    Raises:
        SettingsError, InvalidPhoneNumber, UsageError: As in `Lake.messages`.
    """
    ids = None if conversations is None else frozenset(texts("conversations", conversations, "conv_…"))
    if region is not None:
        check_type("region", region, str, "a text, such as 'TW'")
        region = parse_region(region)
    if phones is None:
        return ids, None
    return ids, frozenset(parse_phone(one, region) for one in texts("phones", phones, "+886…"))


def _warn(problem: str, names: Sequence[str]) -> None:
    """Warn of arguments that select nothing, and name the first."""
    if names:
        shown = [*sorted(names)[:MAX_NAMED], *(["…"] if len(names) > MAX_NAMED else [])]
        warnings.warn(f"{problem}: {', '.join(shown)}", stacklevel=2)


def _warn_of_missing(messages: _Messages, conversations: frozenset[str], named: frozenset[str]) -> None:
    """Warn of conversations that the caller named, also by number, and that have no messages."""
    there = messages.conversation_folders()
    missing = [one for one in named if there.isdisjoint(map(_folder, _spellings(one)))]
    if conversations != named:
        missing = [one for one in missing if canonical_conversation_id(one) in conversations]
    where = "table" if messages.source == "table" else "lake"
    _warn(f"the {where} has no messages of these conversations", [repr(printable(one)) for one in missing])


# The version of each message at a time: the current version if it is that old; else a replaced one. A killed
# run can leave a revision of a version that it did not replace, and that is therefore still the current one.
_CURRENT = ", ".join(
    {
        "sender_role": _ROLE,
        "is_deleted": "is_deleted AND deleted_at <= $as_of AS is_deleted",
        "deleted_at": "CASE WHEN deleted_at <= $as_of THEN deleted_at END AS deleted_at",
    }.get(name, name)
    for name in SCHEMA.names
)
_AS_OF = f"""
SELECT {_CURRENT} FROM lake_messages WHERE coalesce(last_changed_at, first_seen_at) <= $as_of
UNION ALL
SELECT {_CURRENT} FROM (
    SELECT *, row_number() OVER (
               PARTITION BY organization_id, conversation_id, message_id
               ORDER BY last_changed_at DESC NULLS LAST, replaced_at DESC
           ) AS newest
    FROM lake_revisions
    WHERE coalesce(last_changed_at, first_seen_at) <= $as_of AND replaced_at > $as_of
) AS r
WHERE newest = 1 AND EXISTS (
    SELECT 1 FROM lake_messages AS m
    WHERE m.organization_id = r.organization_id AND m.conversation_id = r.conversation_id
      AND m.message_id = r.message_id AND coalesce(m.last_changed_at, m.first_seen_at) > $as_of
)"""  # noqa: S608 - from constants


def _conditions(
    *, since: datetime | None, until: datetime | None, deleted: bool
) -> tuple[str, dict[str, Any]]:
    """Return the condition of a query, and its values."""
    conditions, values = ["true"], {}
    if since is not None:
        conditions.append("created_at >= $since")
        values["since"] = since
    if until is not None:
        conditions.append("created_at < $until")
        values["until"] = until
    if not deleted:
        conditions.append("NOT is_deleted")
    return " AND ".join(conditions), values


def _folder(conversation_id: str) -> str:
    return f"conv={lakes.encoded(conversation_id)}"


def _spellings(conversation_id: str) -> set[str]:
    """Return every spelling under which a lake can have a conversation."""
    canonical = canonical_conversation_id(conversation_id)
    bare = canonical.removeprefix("conv_")
    is_uuid = canonical != conversation_id or len(bare) == 36
    return {conversation_id, canonical, *((bare, f"tcu_{bare}") if is_uuid else ())}


def _all_spellings(conversations: Iterable[str]) -> pa.Array:
    return pa.array(sorted({name for one in conversations for name in _spellings(one)}), pa.string())


async def _check_organization(lake: lakes.Lake, organization: str) -> None:
    """Reject an organization of which the lake has nothing, if it has another one.

    Raises:
        InputError: The lake does not have it.
    """
    if await lake.store.list(f"{lakes.MESSAGES}org={lakes.encoded(organization)}/", most=1):
        return
    known = {lakes.organization_of(folder) for folder in await lake.list_organizations()}
    for ledger in LEDGERS:
        rows = await read_ledger(lake, ledger, columns=["organization_id"])
        known |= {*rows.column("organization_id").to_pylist()}
    if known and organization not in known:
        raise InputError(f"the lake has no organization {organization!r}: it has {', '.join(sorted(known))}")


class _LazyLedger:
    """A ledger that is read when a query needs it.

    Args:
        requests: The requests of the query.
        ledger: The ledger.
        organization: Only rows of this organization; None for all.
        until: Only rows that were known at this time; None for all.
    """

    def __init__(
        self,
        requests: _Requests,
        ledger: Ledger,
        organization: str | None,
        until: datetime | None,
    ) -> None:
        self._requests, self._ledger = requests, ledger
        self._organization, self._until = organization, until
        self._rows: pa.Table | None = None

    def __arrow_c_schema__(self) -> object:
        """Return the schema, without reading."""
        return LEDGER_SCHEMAS[self._ledger].__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Return the rows."""
        if self._rows is None:
            self._rows = self._read()
        return self._rows.__arrow_c_stream__(requested_schema)

    def _read(self) -> pa.Table:
        rows: pa.Table = self._requests.run(read_ledger(self._requests.lake, self._ledger))
        if self._organization is not None:
            rows = rows.filter(pc.equal(rows.column("organization_id"), self._organization))
        if self._until is not None:
            is_known = pc.less_equal(rows.column(_KNOWN_AT[self._ledger]), pa.scalar(self._until))
            rows = rows.filter(pc.fill_null(is_known, True))
        if self._ledger in _VERSIONS:
            # A row of a run that has just ended can be in its journal and in the ledger.
            rows = last_of_each(rows, *_VERSIONS[self._ledger])
        return rows


class _Requests:
    """The requests of one query.

    Attributes:
        lake: The open lake.
    """

    def __init__(self, session: _Session) -> None:
        self.lake = session.lake
        self._session = session
        # The first error: Arrow and DuckDB hide it in their own.
        self._failures: list[StoreError] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop of the lake, from any other thread."""
        try:
            return self._session.run(work)
        except StoreError as exc:
            if not self._failures:
                self._failures.append(exc)
            raise

    @contextmanager
    def explained(self, messages: _Messages | None) -> Iterator[None]:
        """Turn an error of the engine about an object of the lake into a sentence that names the object.

        Raises:
            StoreError: An object cannot be read.
        """
        try:
            yield
        except (InputError, StoreError) as exc:
            if self._failures:
                # Else its traceback would keep this object and DuckDB, which would report leaks.
                raise self._failures.pop() from exc
            if messages is None or isinstance(exc, InputError):
                raise
            raise self._session.run(messages.problem(self.lake, str(exc))) from exc

    def explain(
        self, batches: Iterator[pa.RecordBatch], messages: _Messages | None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the batches of a result; for errors, see `explained`."""
        with self.explained(messages):
            yield from batches


class _Connection:
    """The open lake of a reader, opened when it is first needed."""

    def __init__(self, url: str, options: StoreOptions | None) -> None:
        self._url, self._options = url, options
        self._lock = threading.Lock()
        self._session: _Session | None = None

    def session(self) -> _Session:
        """Return the open lake."""
        with self._lock:
            if self._session is None:
                self._session = _Session(self._url, self._options)
            return self._session

    def close(self) -> None:
        """Close the lake, if it is open."""
        with self._lock:
            if self._session is not None:
                self._session.close()
            self._session = None


class _Session:
    """An open lake, with an event loop in a thread, for callers without one.

    It is closed by `close`, or when nothing uses it any more.

    Attributes:
        lake: The open lake.
    """

    def __init__(self, url: str, options: StoreOptions | None) -> None:
        self._loop = _Loop()
        try:
            opened = lakes.open_lake(url, now=None, options=options)
            self.lake = self._loop.run(self._loop.stack.enter_async_context(opened))
        except BaseException:
            self._loop.close()
            raise
        self._end = weakref.finalize(self, self._loop.end)
        # At the end of the process its threads cannot work any more, and need not.
        self._end.atexit = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop, from any other thread.

        Raises:
            StoreError: The lake is closed, or was closed meanwhile.
        """
        return self._loop.run(work)

    def until_closed(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the batches of a result until the lake is closed.

        They end then for every kind of store: how much has been read ahead is a matter of chance.

        Raises:
            StoreError: The lake was closed.
        """
        while True:
            try:
                batch = None if self._loop.is_closed else next(batches, None)
            except (InputError, StoreError) as exc:
                if self._loop.is_closed:
                    raise StoreError(CLOSED) from exc
                raise
            if self._loop.is_closed:
                raise StoreError(CLOSED)
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        """Close the lake; its requests under way fail."""
        self._end.detach()
        self._loop.close()


class _Loop:
    """An event loop that runs in a separate thread.

    Attributes:
        stack: What the thread closes at the end.
        is_closed: Whether it runs no further coroutines.
    """

    def __init__(self) -> None:
        self.stack = AsyncExitStack()
        self.is_closed = False
        self._lock = threading.Lock()
        # A forked process does not have the thread, and would wait for ever.
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=_serve, args=(self._loop, self.stack), name="lake-reader", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine, from any other thread.

        Raises:
            StoreError: The loop is closed, or was closed meanwhile, or is that of another process.
        """
        if self._pid != os.getpid():
            work.close()
            raise StoreError(FORKED)
        # A coroutine that begins after the end of the loop would never return.
        with self._lock:
            if self.is_closed:
                work.close()
                raise StoreError(CLOSED)
            outcome = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return outcome.result()
        except CancelledError:
            raise StoreError(CLOSED) from None

    def end(self) -> None:
        """Tell the thread to close everything, and wait for nothing.

        The garbage collector can call this in any thread and at any place, even where the thread has a lock
        that closing needs. Nothing calls `run` then, because what does so is in use.
        """
        self.is_closed = True
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._loop.stop)

    def close(self) -> None:
        """Cancel what runs, close everything, and wait for that."""
        with self._lock:
            if self.is_closed or self._pid != os.getpid():
                return
            self.is_closed = True
            closing = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        try:
            closing.result()
        finally:
            self.end()
            self._thread.join()

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.stack.aclose()


def _serve(loop: asyncio.AbstractEventLoop, stack: AsyncExitStack) -> None:
    """Run an event loop until `end` stops it, then close what is still open."""
    try:
        loop.run_forever()
        # An error has no receiver here; at the end of the process, no thread can start any more.
        with suppress(Exception):
            loop.run_until_complete(stack.aclose())
    finally:
        loop.close()
