"""The flow over sizes: first run, idle re-run, one conversation of a hundred changed."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from benchmarks import competitors
from benchmarks.environment import end_tidily, machine, new_place, open_store, prefect_server
from benchmarks.expected import Expected, Verdict, as_ids
from benchmarks.metrics import SUCCESS
from benchmarks.runner import Competitor, FakeGateway, Round, check, fake_gateway, run

STEPS = ("first", "idle", "changed")
STORES = ("local", "seaweed")
MESSAGES_A_CONVERSATION = 20.0
WARM_UP = 20
SHARE_CHANGED = 0.01
ARRIVALS = 3

HEADER = (
    "| conversations | store | run | messages in the lake | time | to the row before | to the first run"
    " | new messages/s | CPU a conversation | requests | most memory | result |\n"
    "|--:|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One run of one size; `new_messages` is how many it had to read."""

    conversations: int
    store: str
    step: str
    new_messages: int
    round: Round
    verdict: Verdict


def main() -> None:
    """Run every size and print the table line by line."""
    arguments = _arguments()
    end_tidily()
    print(f"{machine()}; {arguments.messages:g} messages a conversation in the mean\n\n{HEADER}", flush=True)
    with prefect_server() as server:
        flow = competitors.flow(server)
        for name in arguments.stores:
            with open_store(name) as store:
                _warm_up(flow, store)
                shown: list[Row] = []
                for conversations in arguments.conversations:
                    folder = new_place(store) if name in STORES else f"{store}/{conversations}"
                    for row in _runs(flow, name, folder, conversations, arguments):
                        print(line_of(row, shown), flush=True)
                        shown.append(row)


def _arguments() -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument(
        "--conversations",
        type=lambda text: [int(each) for each in words(text)],
        default=[100, 1_000, 10_000, 100_000],
    )
    parser.add_argument("--messages", type=float, default=MESSAGES_A_CONVERSATION, help="mean a conversation")
    parser.add_argument(
        "--stores",
        type=words,
        default=["local"],
        help="local, seaweed, or a folder or URL: that one stays, so that a later call can go on in it",
    )
    parser.add_argument(
        "--steps",
        type=words,
        default=list(STEPS),
        help="first,idle,changed; without first, a lake that an earlier call left is gone on with",
    )
    arguments = parser.parse_args()
    if unknown := [step for step in arguments.steps if step not in STEPS]:
        parser.error(f"{unknown[0]} is none of {', '.join(STEPS)}")
    if "first" not in arguments.steps and set(arguments.stores) & set(STORES):
        parser.error("without the first run, --stores must name what an earlier call wrote to")
    return arguments


def _warm_up(flow: Competitor, store: str) -> None:
    folder = new_place(store)
    with fake_gateway(conversations=WARM_UP) as gateway:
        run(flow, gateway, folder)
    shutil.rmtree(folder, ignore_errors=True)  # the store may be somebody's folder


def _runs(
    flow: Competitor, store: str, folder: str, conversations: int, arguments: argparse.Namespace
) -> Iterator[Row]:
    """The steps that are asked for, on one fake gateway and one lake."""
    with fake_gateway(conversations=conversations, messages_mean=arguments.messages) as gateway:
        served = gateway.message_ids
        for step in arguments.steps:
            before = 0 if step == "first" else len(served)
            if step == "changed":
                served = as_ids([*served.to_pylist(), *_change(gateway)])
            done = run(flow, gateway, folder)
            verdict = check(flow, folder, Expected.still(served))
            yield Row(conversations, store, step, len(served) - before, done, verdict)


def _change(gateway: FakeGateway) -> list[str]:
    """Let messages arrive in one conversation of a hundred, at least in one; return their ids."""
    ids = gateway.conversation_ids
    chosen = Random(0).sample(ids, max(1, round(len(ids) * SHARE_CHANGED)))
    return [message_id for each in chosen for message_id in gateway.append(each, ARRIVALS)]


def line_of(row: Row, before: Sequence[Row]) -> str:
    """One line of the table.

    Args:
        row: The run.
        before: The runs already shown of the same store: ratios are taken to the same step of the size
            before, and to the first run of the same size.
    """
    metrics = row.round.metrics
    seconds = metrics.seconds
    smaller = [each for each in before if each.step == row.step and each.conversations < row.conversations]
    first = [each for each in before if each.step == "first" and each.conversations == row.conversations]
    result = str(row.verdict) if metrics.outcome == SUCCESS else f"{row.verdict}, reported {metrics.outcome}"
    return (
        f"| {row.conversations:,} | {row.store} | {row.step} | {row.verdict.rows:,} | {seconds:.1f} s"
        f" | {_ratio(seconds, smaller)} | {_ratio(seconds, first)} | {row.new_messages / seconds:,.0f}"
        f" | {metrics.cpu_seconds / row.conversations * 1_000:.1f} ms | {row.round.requests:,}"
        f" | {metrics.memory_bytes / 1e6:.0f} MB | {result} |"
    )


def _ratio(seconds: float, others: Sequence[Row]) -> str:
    return f"{seconds / others[-1].round.metrics.seconds:.2f}" if others else ""


if __name__ == "__main__":
    main()
