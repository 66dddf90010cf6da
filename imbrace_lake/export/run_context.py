"""What all conversations of one run in one process share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa

from imbrace_lake.errors import ImbraceLakeError
from imbrace_lake.export.accounts import Accounts
from imbrace_lake.export.drift import DriftMode, SchemaDrift, Shapes
from imbrace_lake.export.progress import Progress
from imbrace_lake.export.recovery import ChunkJournal, ClosedRun, Heartbeat, recall, recover_dead_runs
from imbrace_lake.gateway.client import GatewayClient
from imbrace_lake.gateway.ids import canonical_conversation_ids, other_spellings
from imbrace_lake.gateway.message_list import DEFAULT_BOUNDS, Bounds
from imbrace_lake.gateway.models import Page
from imbrace_lake.lake.checkpoint import read_state
from imbrace_lake.lake.conversation_states import ConversationStates
from imbrace_lake.lake.lake import Lake, Part, Partitions
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import ConversationEntry
from imbrace_lake.lake.memory import MemoryBudget, Reservation
from imbrace_lake.policy import ReadPolicy, Window
from imbrace_lake.printable import printable

# A summary is for people; the whole list is in the ledger.
MOST_LISTED = 500

logger = logging.getLogger(__name__)


def utc_now() -> datetime:
    """The time, in UTC; the default clock of a run."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class PriorState:
    """The state of a conversation when the run began.

    Attributes:
        state: Its last proven state; None if it was never proven.
        parts: What the lake has of it.
    """

    state: ConversationEntry | None = None
    parts: Sequence[Part] = ()


@dataclass(slots=True)
class RunContext:
    """What all conversations of one run in one process share.

    Attributes:
        run_id: Names the run in the lake.
        organization_id: Whose conversations they are.
        lake, gateway: Open, of this event loop.
        journal: Where the run writes down what it has done.
        slots: Bounds the conversations that are in memory at a time.
        states: The last proven state of each conversation; see `load_prior_state`.
        unproven: Ids of the other conversations that the ledgers name.
        partitions: Which parts each conversation has, as listed when the run began.
        heartbeat: Heartbeat that keeps other runs from recovering this journal.
        spellings: How the lake spells conversations that it has under another than their canonical id.
        shapes: Which shapes of messages are known, and which the run saw first.
        drift: What a new shape means: nothing but a remark, a warning, or that the conversation fails.
        window: The time whose messages are read; open on both sides for all of them.
        policy: What is read again of conversations that the lake has.
        memory_budget: The memory budget of its conversations.
        large_turn: Lets one conversation at a time be published whose rows do not fit in there.
        page_size, pages_ahead, bounds, accept_repeats: As in `walk`.
        progress: Counted on as conversations end.
        clock: Tells the time.
        started_at: When the run began.
        dead_letters: The first `MOST_LISTED` conversations that could not be exported.
        dead_letter_count: How many could not.
        errors: The error class of each of the first, by conversation.
        earlier_found: What an earlier attempt of this run found.
        resumed: What a killed run of the same job had got done: not asked for again.
        open_chunks: The journal of each chunk under way, by its name, so that another try continues from it.
        accounts: What it found, and what of that has an outcome.
        recovered: Killed runs whose journals this run has closed.
        problem: Why a task failed for all that it had left, if one did.
        lost_shards: How many of its shards cannot be shown to have ended and recorded all they were given.
        fatal: What ends the run because every further request would meet it as well.
    """

    run_id: str
    organization_id: str
    lake: Lake
    gateway: GatewayClient
    journal: Journal
    slots: asyncio.Semaphore
    states: ConversationStates = field(default_factory=ConversationStates.empty)
    unproven: Sequence[str] = ()
    partitions: Partitions = field(default_factory=Partitions.empty)
    heartbeat: Heartbeat | None = None
    spellings: dict[str, str] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=Shapes)
    drift: DriftMode = "evolve"
    window: Window = field(default_factory=Window)
    policy: ReadPolicy = field(default_factory=ReadPolicy)
    memory_budget: MemoryBudget = field(default_factory=MemoryBudget)
    large_turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    page_size: int = 100
    pages_ahead: int = 8
    bounds: Bounds = DEFAULT_BOUNDS
    accept_repeats: bool = False
    progress: Progress = field(default_factory=Progress)
    clock: Callable[[], datetime] = utc_now
    started_at: datetime = field(default_factory=utc_now)
    dead_letters: list[ConversationEntry] = field(default_factory=list)
    dead_letter_count: int = 0
    errors: dict[str, type[ImbraceLakeError]] = field(default_factory=dict)
    earlier_found: Sequence[str] = ()
    resumed: ConversationStates = field(default_factory=ConversationStates.empty)
    open_chunks: dict[str, ChunkJournal] = field(default_factory=dict)
    accounts: Accounts = field(default_factory=Accounts)
    recovered: list[ClosedRun] = field(default_factory=list)
    problem: str | None = None
    lost_shards: int = 0
    fatal: ImbraceLakeError | None = None

    @property
    def damaged_objects(self) -> list[str]:
        """Keys of the damaged ledger objects that the run went on without."""
        return sorted(self.lake.damaged)

    def recorded_ids(self) -> list[str]:
        """Every conversation that the ledgers named when the run began."""
        return [*self.states.ids(), *self.unproven]

    def new_reservation(self) -> Reservation:
        """A new conversation's share of the memory budget, for a `with` statement."""
        return Reservation(self.memory_budget, self.lake.store.temporary_directory)

    def prior_states(self, conversation_ids: Collection[str]) -> dict[str, PriorState]:
        """The prior states of some conversations; those without one are left out."""
        states = self.states.of_each(conversation_ids)
        parts = self.partitions.of_each(self.organization_id, conversation_ids)
        return {one: PriorState(states.get(one), parts.get(one, ())) for one in states.keys() | parts.keys()}

    def add_dead_letters(self, entries: Sequence[ConversationEntry]) -> None:
        """Count conversations that could not be exported, and keep the first for the summary."""
        self.dead_letter_count += len(entries)
        self.dead_letters.extend(entries[: MOST_LISTED - len(self.dead_letters)])

    def observe_shapes(self, conversation_id: str, page: Page) -> None:
        """Notice what the gateway has never sent before.

        Raises:
            SchemaDrift: There is such a thing, and the run is to stop at it.
        """
        new = self.shapes.observe(conversation_id, page.items, is_kept=self.drift != "freeze")
        if not new or self.drift == "evolve":
            return
        shapes = ", ".join(new[:5]) + (f" and {len(new) - 5} more" if len(new) > 5 else "")
        if self.drift == "freeze":
            raise SchemaDrift(
                f"conversation {printable(conversation_id)} has what no message had before ({shapes}):"
                " look at it, then export with drift=evolve"
            )
        logger.warning("schema drift conversation=%s new=%s", printable(conversation_id), shapes)

    async def load_prior_state(self, job: str) -> None:
        """Read what the lake has and knows of the organization's conversations; once a run.

        Args:
            job: As `work_fingerprint` names it: what a killed run of the same job had done is not done again.
        """
        recovery = await recover_dead_runs(self.lake, self.run_id, job, self.clock())
        self.resumed, self.recovered = recovery.done, recovery.closed
        # An earlier attempt of this run: what it found and recorded is this run's as well.
        self.accounts.recorded |= recovery.own_recorded
        self.earlier_found = recovery.own_found
        if self.heartbeat is not None:
            await self.heartbeat.send(job)
        state, self.partitions = await asyncio.gather(
            read_state(self.lake, self.organization_id),
            self.lake.list_partitions(self.organization_id),
        )
        self.states, self.unproven, self.shapes = state.states, state.unproven, Shapes(state.shapes)
        self.spellings = self._other_spellings()
        # Reading took several times what is kept, and Arrow would hold on to it.
        pa.default_memory_pool().release_unused()

    def _other_spellings(self) -> dict[str, str]:
        """How the lake spells conversations that it does not have under their canonical ids."""
        partitions = self.partitions.names()
        spellings = other_spellings(partitions)
        recorded = other_spellings(self.states.ids())
        if recorded:
            # Where a conversation has messages decides, for a second partition would repeat them.
            there = {*partitions}
            spellings |= {
                one: other for one, other in recorded.items() if one not in spellings and one not in there
            }
        return spellings

    def as_stored(self, conversation_ids: Iterable[str]) -> list[str]:
        """Return the ids under which the lake has conversations, or is to have them.

        The id of a conversation is canonical, unless an earlier version stored it under another spelling
        and not under the canonical one: that stays the spelling of its partition, rows and entries.

        Args:
            conversation_ids: In any spelling.

        Returns:
            The ids, each conversation once, in their order.
        """
        canonical = canonical_conversation_ids(conversation_ids)
        return [self.spellings.get(one, one) for one in canonical]

    async def found(self, conversation_ids: Iterable[str]) -> list[str]:
        """Write down which conversations the run is to export, those of an earlier attempt included.

        Returns:
            Their ids as the lake spells them, each once.
        """
        ids = self.as_stored([*conversation_ids, *self.earlier_found])
        if len(ids) > len(self.earlier_found):
            await self.journal.note_found(ids)
        self.accounts.found = ids
        return ids

    async def recall(self) -> None:
        """Read what an earlier attempt of this run found and recorded, where `load_prior_state` did not come
        to it.
        """
        recorded, self.earlier_found = await recall(self.lake, self.run_id, self.clock())
        self.accounts.recorded |= recorded

    def release(self) -> None:
        """Free the prior state before closing, which needs the memory."""
        self.states, self.resumed, self.partitions = (
            ConversationStates.empty(),
            ConversationStates.empty(),
            Partitions.empty(),
        )
        self.unproven = ()
        pa.default_memory_pool().release_unused()
