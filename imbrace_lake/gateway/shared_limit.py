"""One budget of requests for all processes, shared by leases in a common store.

Each process leases a rate and states how much it could use. From the same leases all compute the same
shares (max-min fairness), so that no coordinator is needed. A process lowers its rate at once and raises it
only by what is free, so that the sum stays within the limit while shares change. Requests do not wait for the
store: the leases are read every few seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from math import inf
from typing import Protocol

from imbrace_lake.concurrency import every
from imbrace_lake.gateway.limiter import RequestLimiter

logger = logging.getLogger(__name__)

# All processes follow a change of the limit within two rounds.
ROUND_SECONDS = 4.0
# While others still use a part of this process's share.
SHORT_ROUND_SECONDS = 1.0
# After an outage of the store, leases look expired until all processes have renewed theirs.
SETTLE_SECONDS = 20.0
# Until the limit was read once, for a process without a bound of its own.
CAUTIOUS_PER_SECOND = 1.0
# For a process that could use more than its share, so that its share can grow.
SPARE_FACTOR = 1.25


@dataclass(frozen=True, slots=True)
class Lease:
    """One process's rate, and the rate that it could use; requests per second."""

    rate: float
    wanted: float


class LeasesUnreachable(Exception):
    """The store of the leases does not answer; the message says why."""


class LeaseStore(Protocol):
    """The limit and the leases; every method may raise `LeasesUnreachable`."""

    async def read_limit(self) -> float | None:
        """Return the requests per second for all processes together; None if no such limit is set."""
        ...

    async def read_leases(self) -> Sequence[Lease]:
        """The leases of all other live processes."""
        ...

    async def write_lease(self, lease: Lease) -> None:
        """Replace this process's lease."""
        ...

    async def drop_lease(self) -> None:
        """Remove this process's lease, if it has one."""
        ...


def fair_share(limit: float, wanted: float, others: Sequence[float]) -> float:
    """Return the max-min fair share of one process; capacity that no process wants is split evenly.

    Args:
        limit: What there is.
        wanted: What this process could use.
        others: What each of the others could use.
    """
    left, many = limit, len(others) + 1
    for number, each in enumerate(sorted([wanted, *others])):
        level = left / (many - number)
        if each > level:
            return min(wanted, level)
        left -= each
    return wanted + left / many


class SharedLimit:
    """Keeps one limiter's rate at this process's share."""

    def __init__(self, limiter: RequestLimiter, leases: LeaseStore, name: str, own: float | None) -> None:
        self._limiter = limiter
        self._leases = leases
        self._name = name
        self._own = own
        self._rate = 0.0
        self._limit: float | None = None
        self._was_read = False
        self._is_away = False
        self._settled_at = 0.0
        self.is_waiting_for_share = False
        """Whether others still use a part of this process's share."""

    async def refresh(self) -> None:
        """One round: read the leases, renew this process's own, and set the limiter's rate."""
        try:
            await self._lease_share()
        except LeasesUnreachable as exc:
            if not self._was_read and self._own is None:
                self._limiter.per_second = CAUTIOUS_PER_SECOND
            if not self._is_away:
                logger.warning(
                    "the limit %s cannot be read (%s): the run keeps to %s until it can",
                    self._name,
                    exc,
                    _in_words(self._limiter.per_second),
                )
            self._is_away = True
            self._settled_at = asyncio.get_running_loop().time() + SETTLE_SECONDS
        else:
            if self._is_away:
                logger.info("the limit %s can be read again", self._name)
            self._is_away = False

    async def end(self) -> None:
        """Leave the share to the others."""
        with suppress(LeasesUnreachable):  # a lease that is not renewed expires soon
            await self._leases.drop_lease()

    async def _lease_share(self) -> None:
        self.is_waiting_for_share = False
        limit = await self._leases.read_limit()
        is_first, self._was_read = not self._was_read, True
        self._follow(limit)
        if limit is None:
            self._rate = 0.0
            self._limiter.per_second = self._own
            return
        # Where there was no limit before, nothing is used until a share is granted.
        self._set(self._rate)
        others = await self._leases.read_leases()
        most = limit if self._own is None else min(limit, self._own)
        # At first nothing shows how much this process could use. A lease of nothing would get nothing
        # while others use all of the limit, and the first request would wait for two rounds.
        demand = inf if is_first else self._limiter.demand()
        wanted = min(most, demand * SPARE_FACTOR)
        share = fair_share(limit, wanted, [other.wanted for other in others])
        if asyncio.get_running_loop().time() < self._settled_at and self._rate:
            share = min(share, self._rate)
        if share > self._rate:
            await self._raise(share, wanted, limit)
        else:
            self._set(share)
            await self._leases.write_lease(Lease(share, wanted))

    async def _raise(self, share: float, wanted: float, limit: float) -> None:
        """Lease more, and use the part that is free.

        The lease is written before the others are read. Of two that raise theirs in the same moment, at
        least one sees the other.
        """
        await self._leases.write_lease(Lease(share, wanted))
        free = limit - sum(other.rate for other in await self._leases.read_leases())
        granted = max(self._rate, min(share, free))
        self.is_waiting_for_share = granted < share
        if self.is_waiting_for_share:
            await self._leases.write_lease(Lease(granted, wanted))
        self._set(granted)

    def _set(self, share: float) -> None:
        self._rate = share
        self._limiter.per_second = share if self._own is None else min(share, self._own)

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
async def share_limit(
    limiter: RequestLimiter, leases: LeaseStore, name: str, own: float | None
) -> AsyncIterator[None]:
    """Share the limit with all other processes while the block runs.

    Args:
        limiter: Whose rate follows; its requests wait from the first moment.
        leases: The limit and the leases.
        name: What the operator calls the limit.
        own: The most requests a second of this process, whatever its share; None for no such bound.
    """
    share = SharedLimit(limiter, leases, name, own)
    await share.refresh()

    try:
        async with every(
            lambda: SHORT_ROUND_SECONDS if share.is_waiting_for_share else ROUND_SECONDS, share.refresh
        ):
            yield
    finally:
        await share.end()
