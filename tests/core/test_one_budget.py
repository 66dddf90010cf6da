"""Nothing reaches the gateway beside the shared budget: there is one way to open a client."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PRODUCT = ("imbrace_lake", "tasks", "flows", "deployments", "cli")


def modules_that_call(*names: str) -> set[str]:
    """The modules of the product that call something by one of these names, with or without a module."""
    found = set()
    for package in PRODUCT:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(names):
                    found.add(path.relative_to(ROOT).as_posix())
    return found


def test_only_one_module_makes_a_client_of_the_gateway() -> None:
    assert modules_that_call("GatewayClient") == {"imbrace_lake/gateway/factory.py"}


def test_only_two_modules_choose_the_budget_of_a_client() -> None:
    source = {
        path
        for path in modules_that_call("open_gateway")
        if "imbrace_lake.gateway" in (ROOT / path).read_text(encoding="utf-8")
        and "nullcontext()" in (ROOT / path).read_text(encoding="utf-8")
    }

    assert modules_that_call("factory.open_gateway") == {"tasks/imbrace_tasks/budget.py"}
    assert source == {"cli/imbrace_cli/gateway.py"}


def test_nothing_else_asks_the_gateway_without_its_turn() -> None:
    assert modules_that_call("httpx.AsyncClient", "aiohttp.ClientSession") == {
        "imbrace_lake/gateway/http_client.py"
    }
