"""Which fault a request meets: by order, by pin, or by chance."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from imbrace_sandbox.fault_names import FORMS, PASSING, WITH_FORMS, fault_complaint
from imbrace_sandbox.options import SandboxOptions

# The name under which the links endpoint is pinned; conversation ids begin with conv_.
LINKS = "links"
_NONE = "ok"


@dataclass(frozen=True, slots=True)
class Fault:
    """What one request meets.

    Attributes:
        name: A name of `fault_names` without its form; empty for none.
        form: How the body of a 5xx is written.
        delay_seconds: Added to the answer.
        roll: Chance of its own, for whatever the fault has to choose.
    """

    name: str
    form: str
    delay_seconds: float
    roll: float


class FaultInjector:
    """Chooses faults, a function of the seed and the order in which requests arrive."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(f"{seed}/faults")
        self._queue: deque[str] = deque()
        # A pack of cards of its own: every kind comes soon, and all come equally often.
        self._pack_rng = Random(f"{seed}/pack")
        self._pack: list[str] = []

    def check(self, faults: Iterable[str]) -> None:
        """Refuse names that cannot be queued.

        Raises:
            ValueError: There is no fault of a name.
        """
        for name in faults:
            complaint = None if name == _NONE else fault_complaint(name)
            if complaint:
                raise ValueError(complaint)

    def queue(self, faults: Sequence[str]) -> None:
        """Give the next requests these faults, one each; `ok` for none.

        Raises:
            ValueError: There is no fault of a name; then none is queued.
        """
        self.check(faults)
        self._queue.extend("" if name == _NONE else name for name in faults)

    def next(self, options: SandboxOptions, pinned: str) -> Fault:
        """Decide what a request meets.

        Args:
            options: As they are now.
            pinned: The conversation that it asks for, or `links`.
        """
        # Always four draws: whether one request is pinned must not change what the next one meets.
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
