"""Memory that does not depend on the data: `python -m benchmarks.memory` prints peaks and rates.

One conversation of a million messages, into a folder and into a bucket, against as many messages in
many conversations; and a hundred thousand conversations of a few messages each. The flow runs in a
process of its own, on a Prefect server that is warm.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from benchmarks import competitors
from benchmarks.environment import end_tidily, machine, new_place, open_store, prefect_server
from benchmarks.expected import Expected, Verdict
from benchmarks.runner import Round, check, fake_gateway, run

MOST_BYTES = 512 * 10**6
LEAST_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is exported; `options` are the fake gateway's."""

    name: str
    options: dict[str, Any]
    store: str = "local"


def main() -> None:
    """Run the cases and print the table."""
    arguments = _arguments()
    long, many = arguments.messages, arguments.conversations
    few = {"messages_mean": 4.0, "messages_max": 20}
    cases = [
        Case("1,000 conversations of 100", {"conversations": 1_000, "messages_mean": 100.0}),
        Case(f"one of {long:,}", {"conversations": 0, "sizes": [long]}),
        Case(f"one of {long:,}, S3", {"conversations": 0, "sizes": [long]}, "seaweed"),
        Case(f"{many:,} of 4", {"conversations": many, **few}),
    ]
    chosen = [case for number, case in enumerate(cases) if number in arguments.cases]
    end_tidily()
    print(machine())
    print("| | messages | time | messages/s | share | most memory | result |\n|---|--:|--:|--:|--:|--:|---|")
    rate = None
    with prefect_server() as server:
        flow = competitors.flow(server)
        for case in chosen:
            with fake_gateway(**case.options) as gateway, open_store(case.store) as store:
                folder = new_place(store)
                one = run(flow, gateway, folder)
                verdict = check(flow, folder, Expected.still(gateway.message_ids))
            rate = rate or verdict.rows / one.metrics.seconds
            print(_line_of(case, one, verdict, rate), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000, help="of the long conversation")
    parser.add_argument("--conversations", type=int, default=100_000, help="of the many")
    parser.add_argument("--cases", type=int, nargs="+", default=[0, 1, 2, 3], help="which lines, from 0")
    return parser.parse_args()


def _line_of(case: Case, one: Round, verdict: Verdict, rate: float) -> str:
    seconds, memory, messages = one.metrics.seconds, one.metrics.memory_bytes, verdict.rows
    share = messages / seconds / rate
    faults = [] if verdict.is_complete else [str(verdict)]
    faults += [f"more than {MOST_BYTES / 1e6:.0f} MB"] if memory > MOST_BYTES else []
    faults += [f"slower than {LEAST_SHARE:.0%}"] if "sizes" in case.options and share < LEAST_SHARE else []
    return (
        f"| {case.name} | {messages:,} | {seconds:.1f} s | {messages / seconds:,.0f} | {share:.0%}"
        f" | {memory / 1e6:.0f} MB | {'; '.join(faults) or 'complete'} |"
    )


if __name__ == "__main__":
    main()
