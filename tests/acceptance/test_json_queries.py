"""All query engines read a lake of hostile values with their JSON functions, and give the same answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from imbrace_sandbox import Sandbox, SandboxOptions
from tests import hostile
from tests.acceptance.exporter import ROOT
from tests.acceptance.json_engines import ENGINES, expected
from tests.core.lake_runs import Bench

MODULES = {"spark": "pyspark"}


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Make a lake with every hostile value, and ordinary conversations."""
    folder = tmp_path_factory.mktemp("hostile")
    deep = [text for name, text in hostile.DEEPER.items() if "100000" not in name]
    with Sandbox(SandboxOptions(conversations=3, sizes=(40,), surprises=0.3)) as box:
        box.put(hostile.messages([*hostile.BODIES.values(), *deep]), conversation_id="conv_hostile")
        assert Bench(box, str(folder / "lake")).run().status == "complete"
        yield str(folder / "lake" / "messages")


def test_the_lake_has_the_values_that_the_queries_look_for(messages: str) -> None:
    answers = expected(messages)

    assert answers["valid"] == answers["rows"] > 200
    for question in ("texts", "numbered", "inside", "originals", "by_time"):
        assert answers[question]
    assert len(answers["types"]) > 3


@pytest.mark.parametrize("engine", ENGINES)
def test_all_engines_give_the_same_answers(engine: str, messages: str) -> None:
    module = MODULES.get(engine, engine)
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed: `.uv/bin/uv sync --group engines` installs it")
    if engine == "spark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java 17 on the PATH (Debian: apt install openjdk-17-jre-headless)")

    found = ask(engine, messages)

    assert found == expected(messages)


def ask(engine: str, messages: str) -> dict[str, Any]:
    """Query an engine in a separate process."""
    command = [sys.executable, "-m", "tests.acceptance.json_engines", engine, messages]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr[-3_000:]
    answers: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answers


@pytest.mark.parametrize("engine", ["duckdb"])
def test_a_lake_of_the_first_version_fails_before_a_repair_and_not_after(engine: str, tmp_path: Path) -> None:
    from tests.core.test_repair import repair
    from tests.fixtures import make_hostile_lake

    shutil.copytree(make_hostile_lake.LAKE, tmp_path / "lake")
    folder = str(tmp_path / "lake" / "messages")
    with pytest.raises(AssertionError, match="Malformed JSON"):
        ask(engine, folder)

    with Sandbox(SandboxOptions(conversations=0)) as box:
        repair(Bench(box, str(tmp_path / "lake")))

    assert ask(engine, folder) == expected(folder)
