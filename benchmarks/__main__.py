"""The export against a simple script, other tools or a git revision, on the same fake gateway."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from benchmarks.comparison import Size, compare, moving_table, run_checked, speed_table
from benchmarks.competitors import IMPORT, NAMES, SCRIPT, open_competitors
from benchmarks.environment import end_on_sigterm, machine, open_store
from benchmarks.gateway import fake_gateway
from benchmarks.revisions import open_revisions
from benchmarks.runner import Competitor
from benchmarks.script import IN_FLIGHT

COMPETITORS = ("script", "script-nine", "core", "flow")
WHOLE_COMPETITORS = ("script", "core", "export", "import")
# Three pages per conversation, and something moves before each page.
MOVING: dict[str, Any] = {"conversations": 30, "messages_mean": 300.0}
MOVEMENTS = {"messages arrive": {"churn_inserts": 1.0}, "messages are deleted": {"churn_deletes": 1.0}}


def main() -> None:
    """Run the rounds and print the tables."""
    parser = _parser()
    arguments = parser.parse_args()
    arguments.whole |= bool(arguments.against)
    arguments.baselines = [arguments.against] if arguments.against else [SCRIPT, IMPORT]
    names = arguments.competitors or (WHOLE_COMPETITORS if arguments.whole else COMPETITORS)
    if not arguments.whole and (whole := {"export", "import"} & set(names)):
        parser.error(f"{whole.pop()} is measured only with --whole")
    end_on_sigterm()
    with open_revisions(arguments.against) if arguments.against else open_competitors(names) as competitors:
        print(machine(), flush=True)
        if arguments.moving:
            _move(competitors)
            return
        for store in arguments.stores:
            with open_store(store) as address:
                for conversations in arguments.conversations:
                    for latency in arguments.latency:
                        size = Size(conversations, arguments.messages, latency)
                        _compare(competitors, size, address, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)

    def add(name: str, meaning: str, **options: Any) -> None:
        parser.add_argument(name, help=meaning, **options)

    add("--competitors", ", ".join(NAMES), nargs="+", choices=NAMES, metavar="NAME")
    # The name in earlier releases.
    add("--contenders", argparse.SUPPRESS, dest="competitors", nargs="+", choices=NAMES)
    add("--conversations", "default: 1000", nargs="+", type=int, default=[1_000], metavar="N")
    add("--messages", "mean per conversation; default: 108", type=float, default=108.0, metavar="N")
    add("--latency", "milliseconds per answer", nargs="+", type=float, default=[0.0], metavar="MS")
    add("--rounds", "default: 5", type=int, default=5, metavar="N")
    add("--stores", "local, seaweed, a folder or a URL", nargs="+", default=["local"], metavar="STORE")
    add("--whole", "measure whole processes, with start and imports", action="store_true")
    add("--moving", "no speed, but the results for lists that move while read", action="store_true")
    add("--against", "compare this working tree with a git revision, in whole processes", metavar="REVISION")
    return parser


def _compare(
    competitors: Sequence[Competitor], size: Size, store: str, arguments: argparse.Namespace
) -> None:
    rounds = compare(competitors, size, store, arguments.rounds, is_whole=arguments.whole)
    print(f"\n{speed_table(rounds, size.conversations, arguments.baselines)}", flush=True)
    requests = min((one.requests for one in rounds if one.requests), default=0)
    if seconds := requests * size.latency_milliseconds / 1_000 / IN_FLIGHT:
        print(f"\nThe latency alone takes {seconds:.2f} s, with {IN_FLIGHT} requests in flight.", flush=True)


def _move(competitors: Sequence[Competitor]) -> None:
    """Let each competitor read lists that move; each has a new fake gateway, because moved lists stay so."""
    found = {}
    with open_store("local") as store:
        for movement, churn in MOVEMENTS.items():
            rounds = []
            for competitor in competitors:
                with fake_gateway(**MOVING, **churn) as gateway:
                    messages = len(gateway.message_ids)
                    rounds.append(run_checked(competitor, gateway, store, is_moving=True))
                print(f"{movement}: {competitor.name}: {rounds[-1].result}", flush=True)
            found[movement] = rounds
    print(
        f"\n{MOVING['conversations']} conversations, {messages:,} messages at first,"
        f" that move by one before each page\n\n{moving_table(found)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
