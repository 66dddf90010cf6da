"""A process that runs flows and commands for the acceptance tests, as the command line would run it.

It is a separate process because Prefect reads its settings when it is imported, because a test searches
its output, and because a test kills it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.memory import most_memory_bytes
from imbrace_cli.prefect_environment import prepare_client
from imbrace_lake.tuning import tuned_process
from tests.acceptance.accidents import break_step, install

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

OURS = ("IMBRACE_", "AWS_")
# The seed of accidents.py; without it there are no accidents.
ACCIDENTS = "IMBRACE_TEST_ACCIDENTS"
ACCIDENT_SHARE = 0.01
# The name of a function that fails, and the number of its exception in accidents.py.
BROKEN_STEP = "IMBRACE_TEST_BROKEN_STEP"
DEBUGGING = "TESTS_DEBUG_LOGGING"


def main() -> None:
    """Do a job per line of standard input; `argv` has the file of the answers, Prefect's API and folder."""
    answers = os.fdopen(int(sys.argv[1]), "w")
    prepare_client(sys.argv[2], Path(sys.argv[3]))
    if DEBUGGING in os.environ:
        for logger in ("", "ROOT_", "HANDLERS_CONSOLE_"):
            os.environ[f"PREFECT_LOGGING_{logger}LEVEL"] = "DEBUG"
    for line in sys.stdin:
        job = json.loads(line)
        for name in [name for name in os.environ if name.startswith(OURS)]:
            del os.environ[name]
        os.environ.update(job["environment"])
        print(json.dumps(_do(job)), file=answers, flush=True)


def _do(job: dict[str, Any]) -> dict[str, Any]:
    if "arguments" in job:
        return _call(job["arguments"])
    if "parameters" in job:
        return _backfill(job["parameters"])
    return _export(job["params"])


def _call(arguments: list[str]) -> dict[str, Any]:
    """Call the command line, and return what it printed."""
    from imbrace_cli.main import main

    with redirect_stdout(StringIO()) as output:
        code = main(arguments)
    return {"code": code, "output": output.getvalue()}


def _backfill(parameters: dict[str, Any]) -> dict[str, Any]:
    """Call the flow with the parameters of a deployment, as the process of its run does."""
    from imbrace_flows.backfill import backfill_conversations

    async def backfill() -> State[Any]:
        return await backfill_conversations(**parameters, return_state=True)

    state = asyncio.run(backfill())
    return {"name": state.name, "message": state.message}


def _export(params: dict[str, Any]) -> dict[str, Any]:
    # Imported here, because Prefect's settings are in the environment only now.
    from imbrace_flows.export import export_conversations
    from imbrace_flows.observer import run_result
    from imbrace_flows.params import ExportParams

    if DEBUGGING in os.environ:
        logging.getLogger("imbrace_lake").setLevel(logging.DEBUG)
    began, cpu = time.monotonic(), time.process_time()

    async def export() -> State[Any]:
        return await export_conversations(ExportParams(**params), return_state=True)

    seed = os.environ.get(ACCIDENTS)
    end = install(int(seed), ACCIDENT_SHARE) if seed else None
    if step := os.environ.get(BROKEN_STEP):
        name, _, number = step.partition("=")
        end = break_step(name, int(number))
    try:
        # As the command line does.
        with tuned_process():
            state = asyncio.run(export())
    finally:
        if end is not None:
            end()
    result = run_result(state)
    return {
        "state_type": state.type.value,
        "state_name": state.name,
        "message": state.message,
        "problems": [] if result is None else list(result.problems),
        "summary": result and result.summary.as_json(),
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time() - cpu,
        "most_memory_bytes": most_memory_bytes(),
    }


if __name__ == "__main__":
    main()
