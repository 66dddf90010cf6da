"""What a verification finds."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be: which object or conversation, and what is wrong."""

    name: str
    problem: str


@dataclass(slots=True)
class Verification:
    """What a verification looked at, and what it found.

    Attributes:
        parts, ledger_objects: How many objects were read.
        unrecorded: Parts whose current version is in no ledger, as a killed run leaves them; what they
            contain matches what they claim.
        counts: Conversations whose count was asked of the gateway.
    """

    parts: int = 0
    ledger_objects: int = 0
    unrecorded: int = 0
    counts: int = 0
    differences: list[Difference] = field(default_factory=list)

    def add(self, name: str, problem: str | None) -> None:
        """Add a difference, if there is one."""
        if problem is not None:
            self.differences.append(Difference(name, problem))

    @property
    def is_sound(self) -> bool:
        """Nothing differs."""
        return not self.differences
