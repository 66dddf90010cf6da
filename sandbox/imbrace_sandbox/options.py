"""Everything that can be chosen about the fake gateway, in one frozen object."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from imbrace_sandbox.fault_names import fault_complaint

T = TypeVar("T")

# What goes into headers, paths and JSON without escaping.
_PLAIN = re.compile(r"[A-Za-z0-9._:-]+")

# These decide what the conversations are, and that is settled when the server starts.
_SETTLED = frozenset(
    {
        "seed",
        "conversations",
        "messages_mean",
        "messages_spread",
        "messages_max",
        "sizes",
        "file",
        "file_limit",
        "surprises",
        "prerender",
        "publishers",
        "comments",
        "organization_id",
        "business_unit_id",
    }
)


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a value must be; `low` and `high` are inclusive."""

    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False

    def complaint(self, name: str, value: object, default: object) -> str | None:
        """Say in one sentence what is wrong with the value, or None."""
        if value is None:
            return None if self.optional else f"{name} must be given"
        if self.choices:
            return None if value in self.choices else f"{name} must be one of {', '.join(self.choices)}"
        if isinstance(default, bool):
            return None if isinstance(value, bool) else f"{name} must be true or false"
        if isinstance(default, str):
            is_plain = isinstance(value, str) and _PLAIN.fullmatch(value)
            return None if is_plain else f"{name} must be made of letters, digits and . _ : -"
        if self.low is not None or self.high is not None:
            return self._number_complaint(name, value, whole=isinstance(default, int))
        return None

    def _number_complaint(self, name: str, value: object, *, whole: bool) -> str | None:
        kinds: tuple[type, ...] = (int,) if whole else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return f"{name} must be a {'whole ' if whole else ''}number"
        assert isinstance(value, int | float)  # noqa: S101 - narrows for the type checker
        # Written so that NaN, which compares false with everything, is refused as well.
        if (self.low is not None and not value >= self.low) or (
            self.high is not None and not value <= self.high
        ):
            limits = f"from {self.low:g}" + ("" if self.high is None else f" to {self.high:g}")
            return f"{name} must be {limits}, not {value}"
        return None


def _option(
    default: T,
    text: str,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    optional: bool = False,
) -> T:
    return field(default=default, metadata={"rule": _Rule(text, low, high, choices, optional)})


@dataclass(frozen=True, kw_only=True)
class SandboxOptions:
    """What to serve, how, and with which faults; every value is checked when it is made.

    Raises:
        ValueError: A value cannot be used; the message is one sentence that names the option.
    """

    token: str = _option(
        "api_00000000-0000-4000-8000-000000000000", "The only x-access-token that is accepted."
    )
    organization_id: str = _option("org_sandbox", "The organization the token belongs to.")
    business_unit_id: str = _option("bu_sandbox", "The business unit of every message.")

    seed: int = _option(7, "Decides content, phones, faults and mutations.", 0)
    conversations: int = _option(120, "How many conversations to generate; ignored with a file.", 0)
    messages_mean: float | None = _option(
        None, "Mean messages of a conversation; left out, the median is 18.", 1, optional=True
    )
    messages_spread: float = _option(
        0.7, "Sigma of the log-normal message counts; 0 makes all conversations equally long.", 0, 3
    )
    messages_max: int = _option(2_000, "No generated conversation is longer, those of `sizes` excepted.", 1)
    sizes: tuple[int, ...] = _option(
        (), "Further generated conversations of exactly these sizes, listed first; 0 and 1000000 are fine."
    )
    file: Path | None = field(
        default=None,
        metadata={"rule": _Rule("Serve the conversations of this .jsonl or .jsonl.gz file.", optional=True)},
    )
    file_limit: int = _option(0, "Serve only the first so many conversations of the file; 0 for all.", 0)
    surprises: float = _option(0.0, "Share of generated messages that hold a surprising value.", 0, 1)
    prerender: bool = _option(
        False, "Make all messages at the start, so that the first reading is as fast as the next."
    )

    publishers: bool = _option(
        False, "Let `pub_` senders write what bots write, and texts that are nothing but JSON."
    )
    comments: float = _option(0.0, "Share of generated messages with internal notes of the team.", 0, 1)

    compression: str = _option(
        "none",
        "Content coding of answers, for clients that accept it; `raw-deflate` lacks the zlib header.",
        choices=("none", "gzip", "deflate", "raw-deflate"),
    )
    token_expired: bool = _option(False, "Answer 401 to every request, as for a wrong token.")
    id_spelling: str = _option(
        "conv",
        "How links spell the ids of conversations: `conv_<uuid>`, `tcu_<uuid>`, the bare UUID, or all three.",
        choices=("conv", "tcu", "bare", "mixed"),
    )
    page_cap: int = _option(100, "The most messages a page holds, whatever `limit` asks for.", 1)
    links_shape: str = _option(
        "array", "Body of the links endpoint.", choices=("array", "envelope", "alternating")
    )
    plain_links: bool = _option(False, "Make every link look like the example of the vendor's page.")
    counts_swapped: bool = _option(
        False, "Use the usual convention: `total` the whole conversation, `count` this page."
    )
    without_has_more: bool = _option(False, "Leave `has_more` out of pages.")
    max_url_bytes: int = _option(8_192, "Answer 414 to longer request targets.", 64)

    budget_requests: int = _option(0, "Requests a client IP may make in one window; 0 for no budget.", 0)
    budget_window_seconds: float = _option(1_800.0, "Length of the budget's window.", 0.01)
    budget_kind: str = _option(
        "fixed", "Fixed window from a client's first request, or token bucket.", choices=("fixed", "bucket")
    )
    budget_retry_after: bool = _option(
        False, "Send Retry-After with the budget's 429, which the vendor doesn't."
    )
    budget_silent: bool = _option(False, "Drop the connection instead of answering 429.")

    rates: Mapping[str, float] = field(
        default_factory=dict, metadata={"rule": _Rule("Probability of each fault, by its name.")}
    )
    mixed: float = _option(0.0, "Probability that a request meets some passing fault, all kinds alike.", 0, 1)
    broken: Mapping[str, str] = field(
        default_factory=dict,
        metadata={
            "rule": _Rule("Conversation id (or `links`) to the fault that each of its requests meets.")
        },
    )
    gateway_timeout_seconds: float = _option(30.0, "How long the proxy waits before its 504.", 0)
    stall_seconds: float = _option(0.0, "How long a stall lasts; 0 for endless.", 0)
    drip_seconds: float = _option(0.2, "Between two bytes of a drip.", 0)
    latency_seconds: float = _option(0.0, "Added to every answer.", 0)
    latency_jitter_seconds: float = _option(0.0, "Up to this much more, seeded.", 0)

    churn_inserts: float = _option(0.0, "Messages that arrive, for each page read of a conversation.", 0)
    churn_backdated: float = _option(0.0, "Messages that arrive among older ones, likewise.", 0)
    churn_deletes: float = _option(0.0, "Messages deleted, likewise.", 0)
    churn_edits: float = _option(0.0, "Messages edited, likewise.", 0)
    churn_moves: int = _option(0, "After so many moves a conversation keeps still; 0 for never.", 0)

    def __post_init__(self) -> None:
        """Refuse what cannot be used."""
        for each in fields(self):
            rule: _Rule = each.metadata["rule"]
            complaint = rule.complaint(each.name, getattr(self, each.name), each.default)
            if complaint:
                raise ValueError(complaint)
        _check_sizes(self.sizes)
        _check_faults(self.rates, self.broken, self.mixed)
        if self.file is not None and not self.file.is_file():
            raise ValueError(f"file {self.file} does not exist")

    def changed(self, changes: Mapping[str, Any]) -> SandboxOptions:
        """Return a copy with changes that a running server can follow.

        Raises:
            ValueError: An option is unknown, settled at the start, or has a value it cannot have.
        """
        known = {each.name for each in fields(self)}
        for name in changes:
            if name not in known:
                raise ValueError(f"there is no option {name}")
            if name in _SETTLED:
                raise ValueError(f"{name} is settled when the sandbox starts")
        return replace(self, **changes)

    @classmethod
    def descriptions(cls) -> dict[str, str]:
        """Say what each option means, for a command line's help."""
        return {each.name: each.metadata["rule"].help for each in fields(cls)}


def _check_sizes(sizes: tuple[int, ...]) -> None:
    if any(not isinstance(size, int) or isinstance(size, bool) or size < 0 for size in sizes):
        raise ValueError("sizes must be whole numbers from 0")


def _check_faults(rates: Mapping[str, float], broken: Mapping[str, str], mixed: float) -> None:
    if not (isinstance(rates, Mapping) and isinstance(broken, Mapping)):
        raise ValueError("rates and broken must be mappings")  # noqa: TRY004 - as every other bad option
    for name in (*rates, *broken.values()):
        complaint = fault_complaint(name)
        if complaint:
            raise ValueError(complaint)
    for name, rate in rates.items():
        if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate <= 1:
            raise ValueError(f"the rate of fault {name} must be from 0 to 1")
    if sum(rates.values()) + mixed > 1:
        raise ValueError("the rates of all faults and mixed together must not exceed 1")
