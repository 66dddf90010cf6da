"""Importing our packages changes nothing in a process but its modules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "imbrace_lake",
    "imbrace_tasks",
    "imbrace_flows",
    "imbrace_deployments",
    "imbrace_cli",
    "imbrace_sandbox",
)
WATCHED = """
import csv, gc, importlib, json, logging, pkgutil, signal, sys, warnings

import pyarrow as pa

def modules(package):
    found = importlib.import_module(package)
    yield package
    for module in pkgutil.walk_packages(found.__path__, package + "."):
        if not module.name.endswith(".__main__"):
            yield module.name

def logger_state(logger):
    added = [list(map(repr, logger.filters)), list(map(repr, logger.handlers))]
    return [logger.level, logger.propagate, logger.disabled, *added]

def state():
    loggers = {"": logging.getLogger()} | {
        name: one for name, one in logging.root.manager.loggerDict.items() if isinstance(one, logging.Logger)
    }
    # A logger that is merely asked for changes nothing.
    untouched = [logging.NOTSET, True, False, [], []]
    states = {name: logger_state(one) for name, one in loggers.items()}
    signals = [number for number in signal.valid_signals() if isinstance(number, signal.Signals)]
    return {
        "loggers": {name: one for name, one in states.items() if one != untouched},
        "disabled": logging.root.manager.disable,
        "gc": [gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()],
        "memory pool": pa.default_memory_pool().backend_name,
        "csv": csv.field_size_limit(),
        "warnings": list(map(repr, warnings.filters)),
        "signals": {number.name: repr(signal.getsignal(number)) for number in signals},
        "switch interval": sys.getswitchinterval(),
        "hooks": [repr(sys.excepthook), repr(sys.unraisablehook)],
    }
"""
LIST = f"""{WATCHED}
packages = sys.argv[1:]
for package in packages:
    for module in modules(package):
        importlib.import_module(module)
print(json.dumps([name for name in sys.modules if name.partition(".")[0] not in [*packages, "__main__"]]))
"""
COMPARE = f"""{WATCHED}
others = json.load(sys.stdin)
for name in others:
    try:
        importlib.import_module(name)
    except Exception:
        # Some modules are made by others, and cannot be imported by their names.
        pass
# Prefect makes some of its loggers when it makes the first flow.
import prefect
prefect.flow(state)
changed = {{}}
for package in sys.argv[1:]:
    before = state()
    for module in modules(package):
        importlib.import_module(module)
    changed |= {{
        f"{{package}}: {{name}}": [before[name], now] for name, now in state().items() if now != before[name]
    }}
print(json.dumps(changed))
"""


def run(program: str, *arguments: str, given: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_our_packages_does_not_change_the_process() -> None:
    # Imports of other packages may change anything.
    of_others = run(LIST, *PACKAGES)
    assert "prefect.flows" in json.loads(of_others)

    assert json.loads(run(COMPARE, *PACKAGES, given=of_others)) == {}


def test_a_compaction_imports_neither_an_http_client_nor_the_metadata_of_phone_numbers() -> None:
    program = """
import json, sys
import imbrace_cli.main, imbrace_cli.compact, imbrace_cli.terminal
# The command chooses the allocator with which Arrow is loaded.
assert "pyarrow" not in sys.modules
import imbrace_lake.lake.lake, imbrace_lake.settings, imbrace_lake.tables.compact
imbrace_cli.terminal.is_watched()
others = "httpx", "imbrace_cli.local_server", "imbrace_lake.revisit", "phonenumbers", "prefect", "rich"
print(json.dumps([name for name in others if name in sys.modules]))
"""

    assert json.loads(run(program)) == []
