"""Chooses the fault of a request: queued, pinned or random."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from imbrace_sandbox.fault_names import FORMS, PASSING, WITH_FORMS, fault_complaint
from imbrace_sandbox.options import SandboxOptions

# The links endpoint among pinned conversation ids, which begin with conv_.
LINKS = "links"
_NONE = "ok"


@dataclass(frozen=True, slots=True)
class Fault:
    """The fault of one request.

    Attributes:
        name: A name of `fault_names` without its form; empty for none.
        form: The form of the body: `json`, `text` or `html` for a 5xx.
        delay_seconds: Added to the answer.
        roll: A random number from 0 up to 1 for choices of the fault.
    """

    name: str
    form: str
    delay_seconds: float
    roll: float


class FaultInjector:
    """Chooses faults by the seed and the order in which requests arrive."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(f"{seed}/faults")
        self._queue: deque[str] = deque()
        # Like a pack of cards: every kind comes soon, and all come equally often.
        self._pack_rng = Random(f"{seed}/pack")
        self._pack: list[str] = []

    def check(self, faults: Iterable[str]) -> None:
        """Check names before they are queued.

        Raises:
            ValueError: A name is unknown.
        """
        for name in faults:
            complaint = None if name == _NONE else fault_complaint(name)
            if complaint:
                raise ValueError(complaint)

    def queue(self, faults: Sequence[str]) -> None:
        """Give the next requests these faults, one each; `ok` for none.

        Raises:
            ValueError: A name is unknown; then none is queued.
        """
        self.check(faults)
        self._queue.extend("" if name == _NONE else name for name in faults)

    def next(self, options: SandboxOptions, pinned: str) -> Fault:
        """Choose the fault of a request.

        Args:
            options: The current options.
            pinned: The requested conversation, or `links`.
        """
        # Always four draws, so that a pinned request does not change the faults of the next ones.
        chance, form, jitter, roll = (self._rng.random() for _ in range(4))
        if self._queue:
            name = self._queue.popleft()
        else:
            name = options.broken.get(pinned) or self._by_chance(options, chance)
        fault, _, wanted = name.partition(":")
        return Fault(
            name=fault,
            form=wanted or (FORMS[int(form * len(FORMS))] if fault in WITH_FORMS else ""),
            delay_seconds=options.latency_seconds + jitter * options.latency_jitter_seconds,
            roll=roll,
        )

    def _by_chance(self, options: SandboxOptions, chance: float) -> str:
        for name, rate in options.rates.items():
            if chance < rate:
                return name
            chance -= rate
        if chance < options.mixed:
            if not self._pack:
                self._pack = self._pack_rng.sample(PASSING, len(PASSING))
            return self._pack.pop()
        return ""
