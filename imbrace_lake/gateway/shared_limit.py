"""One budget of requests for all processes, shared by leases in a common store.

Each process leases a rate and states the rate that it could use. From the same leases all processes compute
the same shares (max-min fairness), without a coordinator. A process lowers its rate at once, and raises it
only by the free part of the limit, so that the sum stays within the limit while shares change. Requests do
not wait for the store: each process reads the leases every few seconds.
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
from imbrace_lake.printable import rate

logger = logging.getLogger(__name__)

# All processes follow a change of the limit within two rounds.
ROUND_SECONDS = 4.0
# While other processes still use a part of this process's share.
SHORT_ROUND_SECONDS = 1.0
# After an outage of the store, leases look expired until their processes have renewed them.
SETTLE_SECONDS = 20.0
# Until the limit has been read once, for a process without a separate bound.
CAUTIOUS_PER_SECOND = 1.0
# More than the present demand, so that the share can grow with it.
SPARE_FACTOR = 1.25


@dataclass(frozen=True, slots=True)
class Lease:
    """The rate of one process, and the rate that it could use, in requests per second."""

    rate: float
    wanted: float


class LeasesUnreachable(Exception):
    """The store of the leases does not answer; the message gives the reason."""


class LeaseStore(Protocol):
    """The limit and the leases. All methods may raise `LeasesUnreachable`."""

    async def read_limit(self) -> float | None:
        """Return the requests per second of all processes together; None if there is no limit."""
        ...

    async def read_leases(self) -> Sequence[Lease]:
        """Return the leases of all other live processes."""
        ...

    async def write_lease(self, lease: Lease) -> None:
        """Replace this process's lease."""
        ...

    async def drop_lease(self) -> None:
        """Remove this process's lease, if it has one."""
        ...


def fair_share(limit: float, wanted: float, others: Sequence[float]) -> float:
    """Return the max-min fair share of one process, with an equal part of the rate that no process wants.

    Args:
        limit: The rate of all processes together.
        wanted: The rate that this process could use.
        others: The rates that the others could use.
    """
    left, many = limit, len(others) + 1
    for number, each in enumerate(sorted([wanted, *others])):
        level = left / (many - number)
        if each > level:
            return min(wanted, level)
        left -= each
    return wanted + left / many


class SharedLimit:
    """Keeps a limiter's rate at the share of its process."""

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
        """Whether other processes still use a part of this process's share."""

    async def refresh(self) -> None:
        """Read the leases, renew this process's own, and set the limiter's rate."""
        try:
            await self._lease_share()
        except LeasesUnreachable as exc:
            if not self._was_read and self._own is None:
                self._limiter.per_second = CAUTIOUS_PER_SECOND
            if not self._is_away:
                logger.warning(
                    "the limit %s cannot be read (%s); until it can, the run sends %s",
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
        """Return the share to the other processes."""
        with suppress(LeasesUnreachable):  # the lease expires by itself
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
        # If there was no limit before, no request is admitted until a share is granted.
        self._set(self._rate)
        others = await self._leases.read_leases()
        most = limit if self._own is None else min(limit, self._own)
        # At first the demand is not known. With a demand of zero, the first request would wait for two
        # rounds while others use all of the limit.
        demand = inf if is_first else self._limiter.demand()
        wanted = min(most, demand * SPARE_FACTOR)
        share = fair_share(limit, wanted, [other.wanted for other in others])
        if asyncio.get_running_loop().time() < self._settled_at and self._rate:
            share = min(share, self._rate)
        if share <= self._rate:
            self._set(share)
            await self._leases.write_lease(Lease(share, wanted))
            return
        # The lease is written before those of the others are read, so that of two processes that raise their
        # shares at the same time, at least one sees the other.
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
        """Log a change of the limit."""
        if limit == self._limit:
            return
        self._limit = self._limiter.shared_limit = limit
        if limit is None:
            logger.warning(
                "the limit %s was deleted or is inactive: the run sends %s",
                self._name,
                _in_words(self._own),
            )
        elif limit == 0:
            logger.warning("the limit %s is 0: all requests wait until it is raised", self._name)
        else:
            logger.info("the limit of all runs together, %s, is %s", self._name, rate(limit))


def _in_words(per_second: float | None) -> str:
    if per_second is None:
        return "as many requests as the gateway accepts"
    return f"at most {rate(per_second)}" if per_second else "no request"


@asynccontextmanager
async def share_limit(
    limiter: RequestLimiter, leases: LeaseStore, name: str, own: float | None
) -> AsyncIterator[None]:
    """Share the limit with all other processes while the block runs.

    Args:
        limiter: The limiter of this process; its rate follows the share before the block starts.
        leases: The limit and the leases.
        name: The limit's name, for messages.
        own: The most requests per second of this process with any share; None for no such bound.
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
