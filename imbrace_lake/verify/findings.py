"""The findings of a verification."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Difference:
    """An object or a conversation, and what is wrong with it."""

    name: str
    problem: str


@dataclass(slots=True)
class Verification:
    """The result of a verification.

    Attributes:
        parts, ledger_objects: The number of objects read.
        unrecorded: The number of parts whose current version is in no ledger, for example after a kill, and
            whose content matches their claim.
        table_files: The number of files of tables that were read.
        tables_not_verified: Why the tables were not read; None if they were, or if there are none.
        counts: The number of conversations whose count was compared with the gateway's; None if counts were
            not to be compared.
        without_count: The number of conversations whose count the gateway does not state.
        not_of_organization: The number of conversations of other organizations, which were not compared with
            the gateway, by organization.
    """

    parts: int = 0
    ledger_objects: int = 0
    unrecorded: int = 0
    table_files: int = 0
    tables_not_verified: str | None = None
    counts: int | None = None
    without_count: int = 0
    not_of_organization: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)

    def add(self, name: str, problem: str | None) -> None:
        """Add a difference, if there is one."""
        if problem is not None:
            self.differences.append(Difference(name, problem))

    @property
    def is_sound(self) -> bool:
        """Whether nothing differs."""
        return not self.differences
