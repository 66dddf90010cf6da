"""All options of the fake gateway, in one frozen object."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from imbrace_sandbox.fault_names import fault_complaint

T = TypeVar("T")

# Needs no escaping in headers, paths and JSON.
_PLAIN = re.compile(r"[A-Za-z0-9._:-]+")

# These decide the content of the conversations, which is fixed when the server starts.
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
    """The allowed values; `low` and `high` are inclusive."""

    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False

    def complaint(self, name: str, value: object, default: object) -> str | None:
        """Return a sentence about a wrong value, or None."""
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
            return f"{name} must be {'an integer' if whole else 'a number'}"
        assert isinstance(value, int | float)  # noqa: S101 - narrows for the type checker
        # Also false for NaN.
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
    """The served conversations, the form of the answers, and the faults; checked when created.

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
    file_limit: int = _option(
        0, "Number of conversations of the file to serve, from the first; 0 for all.", 0
    )
    surprises: float = _option(0.0, "Share of generated messages with an unusual value.", 0, 1)
    prerender: bool = _option(
        False, "Make all messages at the start, so that the first read is as fast as later ones."
    )

    publishers: bool = _option(False, "Let `pub_` senders write what bots write, and texts of JSON.")
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
    page_cap: int = _option(100, "The most messages per page, also for a larger `limit`.", 1)
    links_shape: str = _option(
        "array", "Body of the links endpoint.", choices=("array", "envelope", "alternating")
    )
    plain_links: bool = _option(False, "Make every link look like the example of the vendor's page.")
    counts_swapped: bool = _option(
        False, "Use the usual convention: `total` for the conversation, `count` for the page."
    )
    without_has_more: bool = _option(False, "Leave `has_more` out of pages.")
    max_url_bytes: int = _option(8_192, "Answer 414 to longer request targets.", 64)

    budget_requests: int = _option(0, "Requests per client IP and window; 0 for no budget.", 0)
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
    mixed: float = _option(0.0, "Probability of a passing fault, of each kind equally often.", 0, 1)
    broken: Mapping[str, str] = field(
        default_factory=dict,
        metadata={"rule": _Rule("The fault of every request, by conversation id (or `links`).")},
    )
    gateway_timeout_seconds: float = _option(30.0, "How long the proxy waits before its 504.", 0)
    stall_seconds: float = _option(0.0, "How long a stall lasts; 0 for endless.", 0)
    drip_seconds: float = _option(0.2, "Between two bytes of a drip.", 0)
    latency_seconds: float = _option(0.0, "Added to every answer.", 0)
    latency_jitter_seconds: float = _option(0.0, "Upper bound of a random delay added to every answer.", 0)

    churn_inserts: float = _option(0.0, "Messages that arrive, per page read of a conversation.", 0)
    churn_backdated: float = _option(0.0, "Messages that arrive among older ones, per page read.", 0)
    churn_deletes: float = _option(0.0, "Messages deleted, per page read.", 0)
    churn_edits: float = _option(0.0, "Messages edited, per page read.", 0)
    churn_moves: int = _option(0, "Changes after which a conversation no longer changes; 0 for no limit.", 0)

    def __post_init__(self) -> None:
        """Check all values."""
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
            ValueError: An option is unknown, fixed at the start, or has a wrong value.
        """
        known = {each.name for each in fields(self)}
        for name in changes:
            if name not in known:
                raise ValueError(f"there is no option {name}")
            if name in _SETTLED:
                raise ValueError(f"{name} is fixed when the sandbox starts")
        return replace(self, **changes)

    @classmethod
    def descriptions(cls) -> dict[str, str]:
        """Return the meaning of each option, for the help of a command line."""
        return {each.name: each.metadata["rule"].help for each in fields(cls)}


def _check_sizes(sizes: tuple[int, ...]) -> None:
    if any(not isinstance(size, int) or isinstance(size, bool) or size < 0 for size in sizes):
        raise ValueError("sizes must be integers from 0")


def _check_faults(rates: Mapping[str, float], broken: Mapping[str, str], mixed: float) -> None:
    if not (isinstance(rates, Mapping) and isinstance(broken, Mapping)):
        raise ValueError("rates and broken must be mappings")  # noqa: TRY004 - as for every other wrong option
    for name in (*rates, *broken.values()):
        complaint = fault_complaint(name)
        if complaint:
            raise ValueError(complaint)
    for name, rate in rates.items():
        if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate <= 1:
            raise ValueError(f"the rate of fault {name} must be from 0 to 1")
    if sum(rates.values()) + mixed > 1:
        raise ValueError("the rates of all faults and mixed together must not exceed 1")
