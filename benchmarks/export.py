"""The flow against a bare script: `python -m benchmarks.export` prints what each took, and the ratio."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.contest import Contender, Round, compete, stand_in
from cli.local_server import LocalServer, ensure_server, keep_alive, stop_server

AIM = 1.5
MESSAGES_A_CONVERSATION = 108.0
PACKAGES = ("prefect", "httpx", "httpx-aiohttp", "aiohttp", "orjson", "pyarrow")


def main() -> None:
    """Run the rounds and print the tables."""
    arguments = _arguments()
    print(machine())
    with (
        prefect_server() as server,
        stand_in(conversations=arguments.conversations, messages_mean=arguments.messages) as gateway,
    ):
        served = sum(gateway.messages.values())
        print(
            f"{len(gateway.messages):,} conversations, {served:,} messages, {len(gateway.phones):,} phones;"
            f" {arguments.rounds} rounds, one after the other, each in a process of its own\n"
        )
        rounds = []
        for number in range(arguments.rounds + 1):
            for contender in contenders(server):
                one = compete(contender, gateway)
                # The first round warms the server, the disk and the compiled modules.
                if number:
                    rounds.append(one)
                print(line_of(one, "warm-up" if not number else str(number)), flush=True)
    print()
    print(table_of(rounds, len(gateway.messages)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description=__doc__)
    parser.add_argument("--conversations", type=int, default=1_000)
    parser.add_argument("--messages", type=float, default=MESSAGES_A_CONVERSATION, help="mean a conversation")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


@contextmanager
def prefect_server() -> Iterator[LocalServer]:
    """A Prefect server in a home of its own."""
    with tempfile.TemporaryDirectory(prefix="benchmark-home-") as folder:
        home = Path(folder)
        server = ensure_server(home)
        try:
            with keep_alive(home):
                yield server
        finally:
            stop_server(home)


def contenders(server: LocalServer) -> Sequence[Contender]:
    """Who competes, in the order of each round."""
    python = (sys.executable, "-m")
    flow = (*python, "benchmarks.flow")
    return (
        Contender("bare, fsync", (*python, "benchmarks.bare", "--fsync")),
        Contender("flow", (*flow, "--server", server.api_url, str(server.directory)), "messages"),
        Contender("bare", (*python, "benchmarks.bare")),
        Contender("core, no Prefect", (*flow, "--without-prefect"), "messages"),
    )


def machine() -> str:
    """What the figures depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB, load {os.getloadavg()[0]:.1f},"
        f" Python {platform.python_version()}, {versions}"
    )


def line_of(one: Round, number: str) -> str:
    """One round in one line."""
    return (
        f"{number:>8}  {one.contender.name:<18} {one.account.seconds:6.2f} s"
        f" ({one.process_seconds:6.2f} s with start and imports)  {one.faults or 'complete'}"
    )


def table_of(rounds: Sequence[Round], conversations: int) -> str:
    """Medians of all contenders, each against the bare scripts."""
    by_name: dict[str, list[Round]] = {}
    for one in rounds:
        by_name.setdefault(one.contender.name, []).append(one)
    walls = {name: statistics.median(one.account.seconds for one in its) for name, its in by_name.items()}
    lines = [
        "| | median | spread | to bare, fsync | to bare | CPU a conversation | most memory | result |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name, its in by_name.items():
        seconds = sorted(one.account.seconds for one in its)
        cpu = statistics.median(one.account.cpu_seconds for one in its) / conversations * 1_000
        memory = max(one.account.memory_bytes for one in its) / 1e6
        faults = "; ".join(sorted({one.faults for one in its if one.faults})) or "complete"
        lines.append(
            f"| {name} | {walls[name]:.2f} s | {seconds[0]:.2f} to {seconds[-1]:.2f} s"
            f" | {walls[name] / walls['bare, fsync']:.2f} | {walls[name] / walls['bare']:.2f}"
            f" | {cpu:.1f} ms | {memory:.0f} MB | {faults} |"
        )
    prefect = walls["flow"] / walls["core, no Prefect"] - 1
    lines += ["", f"Prefect adds {prefect:.0%} to the core. The aim is a flow of at most {AIM} times bare."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
