"""What the lake had of an organization when a run began."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from imbrace_lake.export.drift import Shapes
from imbrace_lake.gateway.ids import canonical_conversation_id, canonical_conversation_ids, other_spellings
from imbrace_lake.lake.checkpoint import read_state
from imbrace_lake.lake.conversation_states import ConversationStates
from imbrace_lake.lake.hash_index import HashIndex
from imbrace_lake.lake.lake import Lake, Part, Partitions
from imbrace_lake.lake.ledger_schema import ConversationEntry
from imbrace_lake.printable import plural

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PriorState:
    """The state of a conversation when the run began.

    Attributes:
        state: Its last proven state; None if it was never proven.
        parts: Its parts.
    """

    state: ConversationEntry | None = None
    parts: Sequence[Part] = ()


@dataclass(slots=True)
class PriorStates:
    """The states of all conversations when the run began; empty until they are read.

    Attributes:
        states: The last proven state of each conversation.
        unproven: Ids of the other conversations that the ledgers name.
        partitions: Which parts each conversation has.
        spellings: The ids under which the lake has conversations, where they differ from the canonical ids.
    """

    states: ConversationStates = field(default_factory=ConversationStates.empty)
    unproven: Sequence[str] = ()
    partitions: Partitions = field(default_factory=Partitions.empty)
    spellings: dict[str, str] = field(default_factory=dict)
    _index: HashIndex | None = None

    def recorded_ids(self) -> list[str]:
        """Return every conversation that the ledgers named when the run began."""
        return [*self.states.ids(), *self.unproven]

    def is_named(self, conversation_id: str) -> bool:
        """Whether a phone number or an earlier run has named a conversation that was never proven."""
        if self._index is None:
            self._index = HashIndex(map(canonical_conversation_id, self.unproven), len(self.unproven))
        wanted = canonical_conversation_id(conversation_id)
        found = (self.unproven[row] for row in self._index.find([wanted]))
        return any(canonical_conversation_id(one) == wanted for one in found)

    def of_each(self, organization_id: str, conversation_ids: Collection[str]) -> dict[str, PriorState]:
        """Return the prior states of some conversations, without those that have none."""
        states = self.states.of_each(conversation_ids)
        parts = self.partitions.of_each(organization_id, conversation_ids)
        return {one: PriorState(states.get(one), parts.get(one, ())) for one in states.keys() | parts.keys()}

    def as_stored(self, conversation_ids: Iterable[str]) -> list[str]:
        """Return the ids under which the lake has conversations, or is to have them.

        The id of a conversation is canonical, unless an earlier release stored it only under another
        spelling: that remains the spelling of its partition, rows and entries.

        Args:
            conversation_ids: In any spelling.

        Returns:
            The ids, each conversation once, in their order.
        """
        canonical = canonical_conversation_ids(conversation_ids)
        return [self.spellings.get(one, one) for one in canonical]


async def read_prior_states(lake: Lake, organization_id: str, now: datetime) -> tuple[PriorStates, Shapes]:
    """Read the prior states of an organization's conversations, and the known shapes of messages."""
    # One after the other, because each takes several times the memory of its result.
    partitions = await lake.list_partitions(organization_id)
    state = await read_state(lake, organization_id, now=now)
    if state.ahead:
        logger.warning(
            "%s from the future, because a clock was or is wrong: check the clocks of the workers; until"
            " then such entries count as the oldest",
            plural(state.ahead, "entry of the ledgers is", "entries of the ledgers are"),
        )
    names, recorded = partitions.names(), other_spellings(state.states.ids())
    spellings = other_spellings(names)
    if recorded:
        # The existing partition decides, because a second one would repeat its messages.
        there = {*names}
        spellings = {one: other for one, other in recorded.items() if one not in there} | spellings
    return PriorStates(state.states, state.unproven, partitions, spellings), Shapes(state.shapes)
