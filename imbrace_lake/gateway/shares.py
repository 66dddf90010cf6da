"""One budget of requests for all processes, shared through a board that every one of them writes on.

Each process claims a rate of requests and says how much it could use; all compute from the same
claims who may have what (max-min fairness), so nobody has to decide. A process lowers its rate at
once and raises it only into what nobody holds, and so the sum stays within the limit while shares
change hands. A request asks nobody: the board is looked at every few seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from math import inf
from typing import Protocol

from imbrace_lake.gateway.pacing import Gate

logger = logging.getLogger(__name__)

# A change of the limit holds for everybody after two rounds at most.
ROUND_SECONDS = 4.0
# As long as others hold what is due to this process.
SHORT_ROUND_SECONDS = 1.0
# After the board was away, claims look abandoned until everybody has renewed theirs.
CALM_SECONDS = 20.0
# Until the limit was read once, for a process without a bound of its own.
CAUTIOUS_PER_SECOND = 1.0
# Room to grow, for a process that its rate does not hold back.
SPARE_FACTOR = 1.25


@dataclass(frozen=True, slots=True)
class Claim:
    """What one process says: the rate it may use, and the one it could use; requests a second."""

    rate: float
    wanted: float


class BoardUnreachable(Exception):
    """The board does not answer, for now; the message says why in a few words."""


class Board(Protocol):
    """Where the limit stands and the claims are; every method may raise `BoardUnreachable`."""

    async def read_limit(self) -> float | None:
        """Requests a second for all processes together; None if nobody set such a limit."""
        ...

    async def read_claims(self) -> Sequence[Claim]:
        """The claims of all other processes that are alive."""
        ...

    async def claim(self, claim: Claim) -> None:
        """Replace this process's claim."""
        ...

    async def withdraw(self) -> None:
        """Take this process's claim away, if it has one."""
        ...


def fair_share(limit: float, wanted: float, others: Sequence[float]) -> float:
    """Max-min fair share: nobody gets less so that somebody else has more; what nobody wants is split evenly.

    Args:
        limit: What there is.
        wanted: What this process could use.
        others: What each of the others could use.
    """
    left, many = limit, len(others) + 1
    for place, each in enumerate(sorted([wanted, *others])):
        level = left / (many - place)
        if each > level:
            return min(wanted, level)
        left -= each
    return wanted + left / many


class _Sharing:
    """Keeps one gate's rate at this process's share."""

    def __init__(self, gate: Gate, board: Board, name: str, own: float | None) -> None:
        self._gate = gate
        self._board = board
        self._name = name
        self._own = own
        self._rate = 0.0
        self._limit: float | None = None
        self._was_read = False
        self._is_away = False
        self._calm_until = 0.0
        self.is_owed = False
        """Whether others still use a part of this process's share."""

    async def look(self) -> None:
        """One round: read the board, claim, and set the gate's rate."""
        try:
            await self._claim_share()
        except BoardUnreachable as exc:
            if not self._was_read and self._own is None:
                self._gate.per_second = CAUTIOUS_PER_SECOND
            if not self._is_away:
                logger.warning(
                    "the limit %s cannot be read (%s): the run keeps to %s until it can",
                    self._name,
                    exc,
                    _in_words(self._gate.per_second),
                )
            self._is_away = True
            self._calm_until = asyncio.get_running_loop().time() + CALM_SECONDS
        else:
            if self._is_away:
                logger.info("the limit %s can be read again", self._name)
            self._is_away = False

    async def end(self) -> None:
        """Leave the share to the others."""
        with suppress(BoardUnreachable):  # a claim that nobody renews is soon ignored
            await self._board.withdraw()

    async def _claim_share(self) -> None:
        self.is_owed = False
        limit = await self._board.read_limit()
        is_first, self._was_read = not self._was_read, True
        self._follow(limit)
        if limit is None:
            self._rate = 0.0
            self._gate.per_second = self._own
            return
        # Where there was no limit before, nothing is used until a share is granted.
        self._set(self._rate)
        others = await self._board.read_claims()
        most = limit if self._own is None else min(limit, self._own)
        # At first nothing shows how much this process could use. A claim of nothing would get nothing
        # while others use all of the limit, and the first request would wait for two rounds.
        demand = inf if is_first else self._gate.demand()
        wanted = min(most, demand * SPARE_FACTOR)
        share = fair_share(limit, wanted, [other.wanted for other in others])
        if asyncio.get_running_loop().time() < self._calm_until and self._rate:
            share = min(share, self._rate)
        if share > self._rate:
            await self._raise(share, wanted, limit)
        else:
            self._set(share)
            await self._board.claim(Claim(share, wanted))

    async def _raise(self, share: float, wanted: float, limit: float) -> None:
        """Claim more, and use what of it nobody else holds.

        The claim comes before the look at the others. Of two that raise theirs in the same moment, at
        least one sees the other.
        """
        await self._board.claim(Claim(share, wanted))
        free = limit - sum(other.rate for other in await self._board.read_claims())
        granted = max(self._rate, min(share, free))
        self.is_owed = granted < share
        if self.is_owed:
            await self._board.claim(Claim(granted, wanted))
        self._set(granted)

    def _set(self, share: float) -> None:
        self._rate = share
        self._gate.per_second = share if self._own is None else min(share, self._own)

    def _follow(self, limit: float | None) -> None:
        """Say what the limit is whenever it has changed."""
        if limit == self._limit:
            return
        self._limit = limit
        if limit is None:
            logger.warning(
                "the limit %s was deleted or switched off: the run keeps to %s",
                self._name,
                _in_words(self._own),
            )
        elif limit == 0:
            logger.warning("the limit %s is 0: all requests wait until it is raised", self._name)
        else:
            logger.info("the limit %s allows %s for all runs together", self._name, _in_words(limit))


def _in_words(per_second: float | None) -> str:
    if per_second is None:
        return "what the gateway bears"
    return f"{per_second:.3g} requests a second"


@asynccontextmanager
async def sharing(gate: Gate, board: Board, name: str, own: float | None) -> AsyncIterator[None]:
    """Share the board's limit with all other processes as long as the block lasts.

    Args:
        gate: Whose rate follows; its requests wait from the first moment.
        board: Where limit and claims are.
        name: What the operator calls the limit.
        own: The most requests a second of this process, whatever its share; None for no such bound.
    """
    share = _Sharing(gate, board, name, own)
    await share.look()

    async def look_again() -> None:
        while True:
            await asyncio.sleep(SHORT_ROUND_SECONDS if share.is_owed else ROUND_SECONDS)
            await share.look()

    looking = asyncio.create_task(look_again())
    try:
        yield
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        await share.end()
