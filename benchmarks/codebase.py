"""Measures of how easy the code is to follow: `python -m benchmarks.codebase`.

They are signs, not limits: where a number and clarity disagree, clarity wins. To compare two commits,
run it in a checkout of each.
"""

from __future__ import annotations

import ast
import asyncio
import contextvars
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import aiohttp
import grimp  # installed with import-linter
from yarl import URL

ROOT = Path(__file__).resolve().parent.parent
CORE = "imbrace_lake"
# The walk, the proof and the publication of one conversation start here.
MAIN_FUNCTION = "export_conversation"


@dataclass(frozen=True, slots=True)
class Module:
    """A parsed module."""

    name: str
    path: Path
    text: str
    tree: ast.Module


def read_modules(package: str) -> list[Module]:
    """Parse all modules of a top-level package, wherever in the repository its folder is."""
    folder = _folder_of(package)
    modules = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        modules.append(Module(name, path, text, ast.parse(text)))
    return modules


def _folder_of(package: str) -> Path:
    found = [ROOT / package, *ROOT.glob(f"*/{package}")]
    return next(folder for folder in found if (folder / "__init__.py").is_file())


def functions(modules: list[Module]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield all functions and methods, nested ones included."""
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


def private_functions(modules: list[Module]) -> list[str]:
    """Return the names of functions and methods that begin with one underscore."""
    return [
        one.name for one in functions(modules) if one.name.startswith("_") and not one.name.endswith("__")
    ]


def single_caller_share(modules: list[Module]) -> float:
    """Return the share of private functions that are referred to exactly once."""
    uses: Counter[str] = Counter()
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Name):
                uses[node.id] += 1
            elif isinstance(node, ast.Attribute):
                uses[node.attr] += 1
    names = private_functions(modules)
    return sum(uses[name] == 1 for name in names) / len(names)


def docstring_share(modules: list[Module]) -> float:
    """Return the share of public modules, classes, functions and methods that have a docstring.

    A method that overrides one of a base class in the same package is documented there.
    """
    documented = {
        member.name
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        for member in node.body
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(member)
    }
    total = found = 0
    for module in modules:
        for node, is_override in _public(module.tree):
            total += 1
            name = getattr(node, "name", "")
            found += bool(ast.get_docstring(node) or (is_override and name in documented))
    return found / total


def _public(tree: ast.Module) -> Iterator[tuple[Any, bool]]:
    """Yield the public nodes of a module, and whether each may override a method of a base class."""
    yield tree, False
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            yield node, False
            if isinstance(node, ast.ClassDef):
                yield from ((member, bool(node.bases)) for member in _public_methods(node))


def _public_methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the public methods of a class; a setter shares the docstring of its property."""
    for member in node.body:
        if not isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        is_setter = any(ast.unparse(one).endswith(".setter") for one in member.decorator_list)
        if member.name[0] != "_" and not is_setter:
            yield member


def import_cycles(graph: grimp.ImportGraph) -> int:
    """Return the number of modules that import themselves through others."""
    return sum(module in graph.find_upstream_modules(module) for module in graph.modules)


def reachable_modules(graph: grimp.ImportGraph, modules: list[Module]) -> list[str]:
    """Return the core's modules that the main function's module imports, directly or not, and itself."""
    (home,) = (one.name for one in modules if any(node.name == MAIN_FUNCTION for node in functions([one])))
    packages = {one.name for one in modules if one.path.name == "__init__.py"}
    return sorted({home, *graph.find_upstream_modules(home)} - packages)


def frames_to_a_get() -> list[str]:
    """Return our own frames between the command `export` and the first GET of a page, as `file:function`.

    The chain continues where a task or a thread was started. Prefect's frames are not counted.
    """
    chain: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("chain", default=())
    found: list[str] = []

    def own(frame: FrameType | None) -> tuple[str, ...]:
        names = []
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT) and ".venv" not in path.parts and "benchmarks" not in path.parts:
                names.append(f"{path.relative_to(ROOT)}:{frame.f_code.co_name}")
            frame = frame.f_back
        return tuple(reversed(names))

    def so_far() -> tuple[str, ...]:
        # The frames that run an event loop are below each of its tasks, and count once.
        return tuple(dict.fromkeys([*chain.get(), *own(sys._getframe(2))]))

    copy_context, create_task = contextvars.copy_context, asyncio.BaseEventLoop.create_task
    start = threading.Thread.start

    def copying() -> contextvars.Context:
        context = copy_context()
        context.run(chain.set, so_far())
        return context

    def creating(loop: Any, coro: Any, *, context: contextvars.Context | None = None, **options: Any) -> Any:
        context = copy_context() if context is None else context.copy()
        context.run(chain.set, so_far())
        return create_task(loop, coro, context=context, **options)

    def starting(thread: threading.Thread) -> None:
        context, run = copy_context(), thread.run
        context.run(chain.set, so_far())
        thread.run = lambda: context.run(run)  # type: ignore[method-assign]
        start(thread)

    send = aiohttp.ClientSession.get

    def sending(session: aiohttp.ClientSession, url: URL, **options: Any) -> Any:
        if not found and url.path.endswith("/messages"):
            found.extend(so_far())
        return send(session, url, **options)

    with (
        patch("contextvars.copy_context", copying),
        patch("asyncio.BaseEventLoop.create_task", creating),
        patch("threading.Thread.start", starting),
        patch.object(aiohttp.ClientSession, "get", sending),
    ):
        _export()
    return found


def _export() -> None:
    """Export two conversations of the fake gateway by the command line, in this process."""
    import imbrace_sandbox
    from imbrace_cli.main import main

    with tempfile.TemporaryDirectory() as folder:
        options = imbrace_sandbox.SandboxOptions(conversations=2)
        with imbrace_sandbox.Sandbox(options) as box:
            os.environ |= {
                "IMBRACE_GATEWAY": box.url,
                "IMBRACE_TOKEN": options.token,
                "IMBRACE_ORGANIZATION": options.organization_id,
                "IMBRACE_LAKE": str(Path(folder) / "lake"),
            }
            with patch.object(sys, "argv", ["imbrace-lake", "export", *box.phones]):
                main()


def main() -> None:
    """Print the measures."""
    core = read_modules(CORE)
    graph = grimp.build_graph(CORE, exclude_type_checking_imports=True)
    lines = sum(len(one.text.splitlines()) for one in core)
    private = private_functions(core)
    reachable = reachable_modules(graph, core)
    frames = frames_to_a_get()
    rows = [
        ("lines of the core", f"{lines:,}", "8,500"),
        ("modules of the core", f"{len(core)}", ""),
        ("private functions per 1,000 lines", f"{1000 * len(private) / lines:.1f}", "12"),
        ("... with a single caller", f"{single_caller_share(core):.0%}", ""),
        ("own frames from `export` to a GET", f"{len(frames)}", "22"),
        (f"modules reachable from `{MAIN_FUNCTION}`", f"{len(reachable)}", "30"),
        ("public docstrings", f"{docstring_share(core):.0%}", "100%"),
        ("modules in an import cycle", f"{import_cycles(graph)}", "0"),
    ]
    for name, value, aim in rows:
        print(f"{name:44} {value:>8} {'aim ' + aim if aim else ''}".rstrip())
    print("\nThe frames:", *frames, sep="\n  ")


if __name__ == "__main__":
    main()
