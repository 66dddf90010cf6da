"""The memory that 32 concurrent hostile answers take, measured in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable

import pytest

from tests.acceptance.scale import IS_FULL
from tests.core.raw_server import raw_server
from tests.core.test_broken_answers import ENDLESS

pytestmark = pytest.mark.slow

AT_A_TIME = 32
MAX_MEGABYTES = 512

CLIENT = """
import asyncio, json, re, sys
from pathlib import Path
from pydantic import SecretStr
from imbrace_lake.gateway.client import GatewayClient, GatewayOptions
from imbrace_lake.gateway.limiter import RequestLimiter

async def read(url, many):
    options = GatewayOptions(url=url, token=SecretStr("api_x"), organization="org_x", timeout_seconds=120.0)
    async with GatewayClient(options, RequestLimiter()) as client:
        jobs = (client.get_page(f"conv_{n}") for n in range(many))
        return await asyncio.gather(*jobs, return_exceptions=True)

ends = asyncio.run(read(sys.argv[1], int(sys.argv[2])))
# Not ru_maxrss, which a process inherits from the one that started it.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps([sorted({type(end).__name__ for end in ends}), peak]))
"""


def peak_of(url: str) -> tuple[list[str], float]:
    """Return the results of 32 concurrent requests, and the peak memory of their process in MB."""
    command = [sys.executable, "-c", CLIENT, url, str(AT_A_TIME)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    ends, peak = json.loads(done.stdout)
    return ends, peak


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
# Those that take the most memory; "one of each" has all kinds.
@pytest.mark.parametrize("name", [*(ENDLESS if IS_FULL else ["millions of messages"]), "one of each"])
def test_32_hostile_answers_at_a_time_fit_into_512_megabytes(name: str) -> None:
    kinds = list(ENDLESS.values())

    def reply(head: bytes) -> Iterable[bytes]:
        number = int(head.partition(b"conv_")[2].partition(b"/")[0])
        return ENDLESS[name]() if name in ENDLESS else kinds[number % len(kinds)]()

    with raw_server(reply) as server:
        ends, megabytes = peak_of(f"http://127.0.0.1:{server.port}/3rd")

    assert ends == ["AnswerTooLarge"]
    assert megabytes < MAX_MEGABYTES, f"{megabytes:.0f} MB"
    print(f"{name}: {megabytes:.0f} MB")  # noqa: T201 - shown with -s
