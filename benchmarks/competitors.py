"""Everything that takes part in a comparison, by the name that the command line has for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.environment import prefect_home
from benchmarks.peers import peers_python
from benchmarks.runner import Competitor

SCRIPT, IMPORT = "script", "import prefect"
COMMAND = Path(sys.executable).with_name("imbrace-lake")


def script(name: str, *options: str, is_lake: bool = True) -> Competitor:
    """The inline script."""
    return Competitor(name, (sys.executable, "-m", "benchmarks.script", *options), is_lake=is_lake)


def core() -> Competitor:
    """The export without an orchestrator."""
    command = (sys.executable, "-m", "benchmarks.flow", "--without-prefect")
    return Competitor("core, no Prefect", command, "messages")


def flow(variables: dict[str, str]) -> Competitor:
    """The flow, on a warm Prefect server."""
    return Competitor("flow", (sys.executable, "-m", "benchmarks.flow"), "messages", environment=variables)


def export(
    variables: dict[str, str], name: str = "imbrace-lake export", command: Path = COMMAND
) -> Competitor:
    """The command line, on a warm Prefect server."""
    return Competitor(
        name, (str(command), "export", "--phones"), "messages", environment=variables, needs_whole=True
    )


def _import_prefect() -> Competitor:
    return Competitor(IMPORT, (sys.executable, "-c", "import prefect"), None, needs_whole=True)


def _peer(name: str, module: str, messages: str, *options: str) -> Competitor:
    command = (peers_python(), "-m", f"benchmarks.peers.{module}", *options)
    return Competitor(name, command, messages, "_id", is_lake=False)


_WITH_SERVER = {"flow": flow, "export": export}
_ALONE: dict[str, Callable[[], Competitor]] = {
    "script": lambda: script(SCRIPT),
    "script-nine": lambda: script("script, nine columns", "--nine", is_lake=False),
    "script-fsync": lambda: script("script, fsync", "--fsync"),
    "core": core,
    "import": _import_prefect,
    "dlt": lambda: _peer("dlt", "dlt_export", "lake/messages"),
    "dlt-tuned": lambda: _peer("dlt, tuned", "dlt_export", "lake/messages", "--tuned"),
    "singer": lambda: _peer("Singer SDK", "singer_export", "messages"),
}
NAMES = (*_ALONE, *_WITH_SERVER)


@contextmanager
def open_competitors(names: Sequence[str]) -> Iterator[list[Competitor]]:
    """Yield the competitors of these names; those that need a Prefect server share one."""
    with ExitStack() as opened:
        if set(names) & _WITH_SERVER.keys():
            variables = opened.enter_context(prefect_home(COMMAND))
        yield [_WITH_SERVER[name](variables) if name in _WITH_SERVER else _ALONE[name]() for name in names]
