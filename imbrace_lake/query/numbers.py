"""The conversations of phone numbers: everything that any run has resolved, not only the latest answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from imbrace_lake.errors import DamagedObject, InputError
from imbrace_lake.gateway.ids import canonical_conversation_id
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.ledger import groups_of, ledger_of, list_journals, read_objects
from imbrace_lake.lake.ledger_schema import LEDGER_SCHEMAS
from imbrace_lake.phones.numbers import PhoneNumber, phone_hash
from imbrace_lake.query.files import dataset_of
from imbrace_lake.store.contract import ObjectMeta
from imbrace_lake.tables.cleaning import again
from imbrace_lake.tables.delta_log import require_deltalake
from imbrace_lake.tables.ledgers import LEDGER_TABLES, ledger_log, read_ledger_state
from imbrace_lake.tables.rows import table_schema

_COLUMNS = ["organization_id", "phone_hash", "phone", "status", "conversation_ids", "resolved_at"]
# By default, Arrow reads ahead, and loads the column chunks of a file together.
_LITTLE_MEMORY: Mapping[str, Any] = {
    "batch_readahead": 1,
    "fragment_readahead": 1,
    "fragment_scan_options": ds.ParquetFragmentScanOptions(pre_buffer=False),
}
_ANSWERS = ("resolved", "none")
(_TABLE,) = (one for one in LEDGER_TABLES if one.name == "phones")


@dataclass(frozen=True)
class Resolved:
    """What the ledger `phones` has of some numbers.

    Attributes:
        conversations: The canonical ids of their conversations.
        unknown: The numbers of which there is no answer.
        damaged: Ledger objects that cannot be read, and can have more answers.
    """

    conversations: frozenset[str]
    unknown: frozenset[PhoneNumber]
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """The gateway's answers about numbers: the ledger `phones`, from its table as far as that has them.

    At most a few objects at a time are in memory.

    Attributes:
        lake: The open lake.
        run: Runs a coroutine in the event loop of the lake, from any other thread.
        with_table: Read the table `tables/phones/`, if there is one.
        organization: Only rows of this organization; None for all.
        as_of: Only rows that were known at this time; None for all.
    """

    lake: Lake
    run: Callable[[Coroutine[Any, Any, Any]], Any]
    with_table: bool
    organization: str | None
    as_of: datetime | None

    def resolve(self, numbers: Collection[PhoneNumber], keys: Collection[bytes]) -> Resolved:
        """Return all conversations that the answers for some numbers name.

        A number is found by its hash with each of the keys, and by itself where the lake has it. Its hashes
        by other keys are then found too: rows that have only these hashes are about the same number.

        Raises:
            StoreError: The lake cannot be read.
        """
        new = {phone_hash(number, key): number for number in numbers for key in keys}
        hashes: dict[str, PhoneNumber] = {}
        found: set[str] = set()
        answered: set[PhoneNumber] = set()
        while new:
            by_number = [] if hashes else [*numbers]
            hashes, own, new = hashes | new, new, {}
            for row in self._iter_rows([*own], by_number):
                number = own.get(row["phone_hash"]) or row["phone"]
                if row["phone_hash"] not in hashes:
                    new[row["phone_hash"]] = number
                # An answer that is damaged in part has the conversations of its other part.
                found.update(map(canonical_conversation_id, row["conversation_ids"] or ()))
                if row["conversation_ids"] or row["status"] in _ANSWERS:
                    answered.add(number)
        damaged = (key for key in self.lake.damaged if ledger_of(key) == "phones")
        return Resolved(frozenset(found), frozenset(numbers) - answered, tuple(damaged))

    def _iter_rows(self, hashes: list[str], numbers: list[PhoneNumber]) -> Iterator[Mapping[str, Any]]:
        """Yield the rows with one of these hashes or numbers."""
        wanted = pc.field("phone_hash").isin(hashes) | pc.field("phone").isin(pa.array(numbers, pa.string()))
        if self.organization is not None:
            wanted &= pc.field("organization_id") == self.organization
        if self.as_of is not None:
            known_at = pc.field("resolved_at")
            latest = pa.scalar(self.as_of.astimezone(UTC), pa.timestamp("us", "UTC"))
            wanted &= (known_at <= latest) | known_at.is_null()
        for table in self._iter_tables(wanted):
            yield from table.select(_COLUMNS).to_pylist()

    def _iter_tables(self, wanted: pc.Expression) -> Iterator[pa.Table]:
        # Journals first: a journal that a run closes meanwhile is read twice, but not missed.
        journals = self.run(list_journals(self.lake))
        noted = [one for objects in journals.values() for one in objects if ledger_of(one.key) == "phones"]
        yield from self._iter_objects(noted, wanted)
        files, keys = self.run(self._table()) if self.with_table else ([], frozenset[str]())
        listing = self.run(self.lake.store.list("phones/"))
        yield from self._iter_objects([one for one in listing if one.key not in keys], wanted)
        if files:
            schema = table_schema(LEDGER_SCHEMAS["phones"])
            dataset = dataset_of(self.lake.store, self.run, schema, files)
            try:
                yield dataset.to_table(_COLUMNS, filter=wanted, **_LITTLE_MEMORY)
            except (pa.ArrowException, OSError) as exc:
                folder = f"tables/{_TABLE.name}/"
                raise DamagedObject(
                    f"a file in {self.lake.url}/{folder} is missing or damaged: {again(folder)}"
                ) from exc

    def _iter_objects(self, objects: list[ObjectMeta], wanted: pc.Expression) -> Iterator[pa.Table]:
        for group in groups_of(objects):
            for rows in self.run(read_objects(self.lake, [one.key for one in group], _COLUMNS)):
                yield rows.filter(wanted)

    async def _table(self) -> tuple[list[ObjectMeta], frozenset[str]]:
        """Return the files of the table and the ledger objects whose rows it has; nothing without a table."""
        log = ledger_log(self.lake.store, _TABLE)
        if not await self.lake.store.list(f"{log.folder}_delta_log/", most=1):
            return [], frozenset()
        with suppress(InputError):  # the package deltalake is not installed
            require_deltalake()
            snapshot = await log.read()
            state = await read_ledger_state(self.lake.store, _TABLE, snapshot)
            if snapshot is not None and state is not None:
                files = (
                    ObjectMeta(f"{log.folder}{file.path}", file.size_bytes, "", file.modified_at)
                    for file in snapshot.files
                )
                return [*files], frozenset(state.keys)
        return [], frozenset()
