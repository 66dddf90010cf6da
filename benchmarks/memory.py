"""Memory that does not depend on the data: `python -m benchmarks.memory` prints peaks and rates.

One conversation of a million messages, into a folder and into a bucket, against as many messages in
many conversations; and a hundred thousand conversations of a few messages each. The flow runs in a
process of its own, on a Prefect server that is warm.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contest import Contender, Round, compete, stand_in
from benchmarks.export import machine, prefect_server
from tests.seaweed import Seaweed

MOST_BYTES = 512 * 10**6
LEAST_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is exported; `options` are the stand-in's."""

    name: str
    options: dict[str, Any]
    is_in_bucket: bool = False


def main() -> None:
    """Run the cases and print the table."""
    arguments = _arguments()
    long, many = arguments.messages, arguments.conversations
    few = {"messages_mean": 4.0, "messages_max": 20}
    cases = [
        Case("1,000 conversations of 100", {"conversations": 1_000, "messages_mean": 100.0}),
        Case(f"one of {long:,}", {"conversations": 0, "sizes": [long]}),
        Case(f"one of {long:,}, S3", {"conversations": 0, "sizes": [long]}, is_in_bucket=True),
        Case(f"{many:,} of 4", {"conversations": many, **few}),
    ]
    chosen = [case for number, case in enumerate(cases) if number in arguments.cases]
    print(machine())
    print("| | messages | time | messages/s | share | most memory | result |\n|---|--:|--:|--:|--:|--:|---|")
    rate = None
    with prefect_server() as server, _bucket(chosen) as bucket:
        flow = (sys.executable, "-m", "benchmarks.flow", "--server", server.api_url, str(server.directory))
        for case in chosen:
            with stand_in(**case.options) as gateway:
                messages = sum(gateway.messages.values())
                contender = Contender("flow", flow, "messages")
                one = compete(contender, gateway, bucket if case.is_in_bucket else None)
            rate = rate or messages / one.account.seconds
            print(_line_of(case, one, messages, rate), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000, help="of the long conversation")
    parser.add_argument("--conversations", type=int, default=100_000, help="of the many")
    parser.add_argument("--cases", type=int, nargs="+", default=[0, 1, 2, 3], help="which lines, from 0")
    return parser.parse_args()


@contextmanager
def _bucket(cases: list[Case]) -> Iterator[str | None]:
    """The address of an empty bucket, reached by the environment; None if no case wants one."""
    if not any(case.is_in_bucket for case in cases):
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="benchmark-s3-"))
    try:
        with Seaweed(folder) as s3:
            s3.create_bucket("lake")
            os.environ |= {
                "AWS_ACCESS_KEY_ID": s3.key,
                "AWS_SECRET_ACCESS_KEY": s3.secret,
                "AWS_ENDPOINT_URL": s3.endpoint_url,
                "AWS_REGION": "us-east-1",
            }
            yield "s3://lake"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _line_of(case: Case, one: Round, messages: int, rate: float) -> str:
    seconds, memory = one.account.seconds, one.account.memory_bytes
    share = messages / seconds / rate
    faults = [one.faults] if one.faults else []
    faults += [f"more than {MOST_BYTES / 1e6:.0f} MB"] if memory > MOST_BYTES else []
    faults += [f"slower than {LEAST_SHARE:.0%}"] if "sizes" in case.options and share < LEAST_SHARE else []
    return (
        f"| {case.name} | {messages:,} | {seconds:.1f} s | {messages / seconds:,.0f} | {share:.0%}"
        f" | {memory / 1e6:.0f} MB | {'; '.join(faults) or 'complete'} |"
    )


if __name__ == "__main__":
    main()
