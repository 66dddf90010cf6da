"""All requests to the gateway use the shared budget, because there is only one way to open a client."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PRODUCT = ("imbrace_lake", "tasks", "flows", "deployments", "cli")


def modules_that_call(*names: str) -> set[str]:
    """Return the modules of the product that call a function by one of these names."""
    found = set()
    for package in PRODUCT:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(names):
                    found.add(path.relative_to(ROOT).as_posix())
    return found


def test_only_one_module_creates_a_gateway_client() -> None:
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


def test_only_one_module_creates_an_http_client() -> None:
    assert modules_that_call("httpx.AsyncClient", "aiohttp.ClientSession") == {
        "imbrace_lake/gateway/http_client.py"
    }
