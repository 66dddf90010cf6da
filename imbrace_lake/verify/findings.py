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
        unrecorded: Parts of whose present version no ledger speaks, as a killed run leaves them; they
            are whole.
        counts: Conversations whose count was asked of the gateway.
    """

    parts: int = 0
    ledger_objects: int = 0
    unrecorded: int = 0
    counts: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Nothing differs."""
        return not self.differences
