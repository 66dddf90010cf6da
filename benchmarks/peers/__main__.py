"""The flow against bare scripts, dlt and the Singer SDK, on the same fake gateway and the same
conversations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks import competitors
from benchmarks.environment import end_tidily, machine, new_place, open_store, prefect_server
from benchmarks.expected import Expected
from benchmarks.peers.environment import peers_python
from benchmarks.peers.report import Result, moving_table, speed_table
from benchmarks.runner import Competitor, FakeGateway, check, fake_gateway, run

MESSAGES_A_CONVERSATION = 108.0
WARM_UP = 20
# Three pages a conversation, and something moves before each page is made.
MOVING: dict[str, Any] = {"conversations": 30, "messages_mean": 300.0}
MOVEMENTS = {"messages arrive": {"churn_inserts": 1.0}, "messages are deleted": {"churn_deletes": 1.0}}


def main() -> None:
    """Run the rounds and print the tables."""
    arguments = _arguments()
    end_tidily()
    print(machine(), flush=True)
    with ExitStack() as opened:
        competing = [_MAKE[name](opened) for name in arguments.competitors]
        if "still" in arguments.lists:
            for store in arguments.stores:
                _compare_in(store, competing, arguments)
        if "moving" in arguments.lists:
            _move(competing)


def _arguments() -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    def competitor(text: str) -> list[str]:
        if unknown := [name for name in words(text) if name not in _MAKE]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(_MAKE)}")
        return words(text)

    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument(
        "--conversations", type=lambda text: [int(each) for each in words(text)], default=[1_000]
    )
    parser.add_argument("--messages", type=float, default=MESSAGES_A_CONVERSATION, help="mean a conversation")
    parser.add_argument("--stores", type=words, default=["local"], help="local, seaweed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--competitors", type=competitor, default=list(_MAKE), help=", ".join(_MAKE))
    parser.add_argument("--lists", type=words, default=["still", "moving"], help="still, moving")
    return parser.parse_args()


def _peer(name: str, module: str, messages: str, *arguments: str) -> Competitor:
    command = (peers_python(), "-m", f"benchmarks.peers.{module}", *arguments)
    return Competitor(name, command, messages, "_id", is_lake=False)


_MAKE: dict[str, Callable[[ExitStack], Competitor]] = {
    "flow": lambda opened: competitors.flow(opened.enter_context(prefect_server())),
    "core": lambda _: competitors.core(),
    "aiohttp": lambda _: competitors.bare("aiohttp"),
    "aiohttp-fsync": lambda _: competitors.bare("aiohttp", is_synced=True),
    "httpx": lambda _: competitors.bare("httpx"),
    "httpx-aiohttp": lambda _: competitors.bare("httpx-aiohttp"),
    "httpx-aiohttp-fsync": lambda _: competitors.bare("httpx-aiohttp", is_synced=True),
    "dlt": lambda _: _peer("dlt", "dlt_export", "lake/messages"),
    "dlt-tuned": lambda _: _peer("dlt, tuned", "dlt_export", "lake/messages", "--tuned"),
    "singer": lambda _: _peer("Singer SDK", "singer_export", "messages"),
}


def _compare_in(store: str, competing: Sequence[Competitor], arguments: argparse.Namespace) -> None:
    """All sizes in one store."""
    with open_store(store) as folder:
        # A bucket knows no fsync.
        able = [each for each in competing if store == "local" or not each.name.endswith("fsync")]
        for conversations in arguments.conversations:
            _compare(able, conversations, arguments, store, folder)


def _compare(
    competing: Sequence[Competitor],
    conversations: int,
    arguments: argparse.Namespace,
    store: str,
    folder: str,
) -> None:
    """All rounds of one size in one store."""
    # Compiled modules, Prefect's server and the disk are warm before anything counts.
    with fake_gateway(conversations=WARM_UP) as gateway:
        for competitor in competing:
            _round(competitor, gateway, folder)
    with fake_gateway(conversations=conversations, messages_mean=arguments.messages) as gateway:
        messages = len(gateway.message_ids)
        print(
            f"\n{conversations:,} conversations, {messages:,} messages, {len(gateway.phones):,} phones,"
            f" {store}; rounds: {arguments.rounds}, one competitor after the other\n",
            flush=True,
        )
        results = []
        for number in range(1, arguments.rounds + 1):
            for competitor in competing:
                one = _round(competitor, gateway, folder)
                results.append(one)
                print(f"{number:>4}  {one.name:<20} {one.seconds:7.2f} s  {one.said()}", flush=True)
    print(f"\n{speed_table(results, conversations, messages)}", flush=True)


def _move(competing: Sequence[Competitor]) -> None:
    """Lists that move while they are read: each competitor has a fake gateway of its own, for they stay
    moved.
    """
    found: dict[str, Sequence[Result]] = {}
    with open_store("local") as folder:
        for movement, churn in MOVEMENTS.items():
            results = []
            for competitor in competing:
                with fake_gateway(**MOVING, **churn) as gateway:
                    messages = len(gateway.message_ids)
                    one = _round(competitor, gateway, folder, is_moving=True)
                results.append(one)
                print(f"{movement}: {one.name}: {one.said()}", flush=True)
            found[movement] = results
    print(
        f"\n{MOVING['conversations']} conversations, {messages:,} messages at first,"
        f" that move by one before each page\n\n{moving_table(found)}",
        flush=True,
    )


def _round(competitor: Competitor, gateway: FakeGateway, store: str, *, is_moving: bool = False) -> Result:
    """One round in a place of its own."""
    folder = new_place(store)
    one = run(competitor, gateway, folder)
    before = gateway.message_ids
    expected = Expected.moved(before, gateway.ids_now()) if is_moving else Expected.still(before)
    return Result(one, check(competitor, folder, expected))


if __name__ == "__main__":
    main()
