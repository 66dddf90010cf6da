"""The flow over sizes: first run, idle rerun, a rerun after changes; and a very long conversation.

Sizes of conversations are random, except those of `--long`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from benchmarks.competitors import open_competitors
from benchmarks.environment import end_on_sigterm, machine, new_lake, open_store
from benchmarks.expected import Expected, as_ids
from benchmarks.gateway import FakeGateway, fake_gateway
from benchmarks.runner import Competitor, Round, check, run

STEPS = ("first", "idle", "changed")
STORES = ("local", "seaweed")
MESSAGES_PER_CONVERSATION = 20.0
WARM_UP_CONVERSATIONS = 20
SHARE_CHANGED = 0.01
ARRIVALS = 3
MAX_BYTES = 512 * 10**6

HEADER = (
    "| conversations | store | run | messages in the lake | time | to the row before | to the first run"
    " | new messages/s | CPU per conversation | requests | peak memory | result |\n"
    "|--:|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One run of one size; `new_messages` were not in the lake before."""

    conversations: int
    store: str
    step: str
    messages: int
    new_messages: int
    round: Round


def main() -> None:
    """Run all sizes and print the table row by row."""
    arguments = _arguments()
    end_on_sigterm()
    print(f"{machine()}; {arguments.messages:g} messages per conversation on average\n\n{HEADER}", flush=True)
    with open_competitors(["flow"]) as (flow,):
        for name in arguments.stores:
            with open_store(name) as store:
                _warm_up(flow, store)
                shown: list[Row] = []
                for conversations in arguments.conversations:
                    lake = new_lake(store) if name in STORES else f"{store}/{conversations}"
                    for row in _runs(flow, name, lake, conversations, arguments):
                        print(line_of(row, shown), flush=True)
                        shown.append(row)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument(
        "--conversations", nargs="+", type=int, default=[100, 1_000, 10_000, 100_000], metavar="N"
    )
    parser.add_argument(
        "--messages", type=float, default=MESSAGES_PER_CONVERSATION, metavar="N", help="mean per conversation"
    )
    parser.add_argument(
        "--long", nargs="+", type=int, default=[], metavar="N",
        help="sizes of further conversations; `--conversations 0 --long 1000000` has only this one",
    )  # fmt: skip
    parser.add_argument(
        "--stores", nargs="+", default=["local"], metavar="STORE",
        help="local, seaweed, or a folder or URL, which a later call can continue",
    )  # fmt: skip
    parser.add_argument(
        "--steps", nargs="+", choices=STEPS, default=list(STEPS),
        help="without `first`, the run continues the lake of an earlier call",
    )  # fmt: skip
    arguments = parser.parse_args()
    if "first" not in arguments.steps and set(arguments.stores) & set(STORES):
        parser.error("without the first run, --stores must name the folder or URL of an earlier call")
    return arguments


def _warm_up(flow: Competitor, store: str) -> None:
    lake = new_lake(store)
    with fake_gateway(conversations=WARM_UP_CONVERSATIONS) as gateway:
        run(flow, gateway, lake)
    shutil.rmtree(lake, ignore_errors=True)  # the store may be the user's folder


def _runs(
    flow: Competitor, store: str, lake: str, conversations: int, arguments: argparse.Namespace
) -> Iterator[Row]:
    """Run the steps on one fake gateway and one lake."""
    options = {"conversations": conversations, "messages_mean": arguments.messages, "sizes": arguments.long}
    with fake_gateway(**options) as gateway:
        count = len(gateway.conversation_ids)
        served = gateway.message_ids
        for step in arguments.steps:
            before = 0 if step == "first" else len(served)
            if step == "changed":
                served = as_ids([*served.to_pylist(), *_change(gateway)])
            done = run(flow, gateway, lake)
            done = replace(done, verdict=check(flow, lake, Expected.unmoved(served)))
            yield Row(count, store, step, len(served), len(served) - before, done)


def _change(gateway: FakeGateway) -> list[str]:
    """Add messages to 1 % of the conversations, at least to one; return their ids."""
    ids = gateway.conversation_ids
    chosen = Random(0).sample(ids, max(1, round(len(ids) * SHARE_CHANGED)))
    return [message_id for each in chosen for message_id in gateway.append(each, ARRIVALS)]


def line_of(row: Row, before: Sequence[Row]) -> str:
    """Return one line of the table.

    Args:
        row: The run.
        before: Earlier rows of the same store. Ratios are to the same step of the previous size, and to the
            first run of the same size.
    """
    metrics, memory = row.round.metrics, row.round.memory_bytes
    smaller = [each for each in before if each.step == row.step and each.conversations < row.conversations]
    first = [each for each in before if each.step == "first" and each.conversations == row.conversations]
    result = row.round.result
    result += f"; more than {MAX_BYTES / 1e6:.0f} MB" if memory > MAX_BYTES else ""
    return (
        f"| {row.conversations:,} | {row.store} | {row.step} | {row.messages:,} | {metrics.seconds:.1f} s"
        f" | {_ratio(row, smaller)} | {_ratio(row, first)} | {row.new_messages / metrics.seconds:,.0f}"
        f" | {metrics.cpu_seconds / row.conversations * 1_000:.1f} ms | {row.round.requests:,}"
        f" | {memory / 1e6:.0f} MB | {result} |"
    )


def _ratio(row: Row, others: Sequence[Row]) -> str:
    return f"{row.round.metrics.seconds / others[-1].round.metrics.seconds:.2f}" if others else ""


if __name__ == "__main__":
    main()
