"""This working tree and a git revision as competitors.

Each side gets a new environment from its own `uv.lock`, and its own Prefect server. A round is a whole
process of `imbrace-lake export`, so that any two revisions can be compared.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.competitors import export
from benchmarks.environment import PROJECT, prefect_home
from benchmarks.runner import Competitor

GIT = ("git", "-C", str(PROJECT))


@contextmanager
def open_revisions(revision: str) -> Iterator[list[Competitor]]:
    """Yield the revision and this working tree, both installed."""
    with (
        checked_out(revision) as tree,
        _installed(revision, tree) as earlier,
        _installed("this tree", PROJECT) as later,
    ):
        yield [earlier, later]


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Check a revision out into a temporary worktree."""
    with tempfile.TemporaryDirectory(prefix="benchmark-tree-") as folder:
        tree = Path(folder, "tree")
        _run(*GIT, "worktree", "add", "--quiet", "--detach", str(tree), revision)
        try:
            yield tree
        finally:
            _run(*GIT, "worktree", "remove", "--force", str(tree))


@contextmanager
def _installed(name: str, tree: Path) -> Iterator[Competitor]:
    """Install a tree into a new environment, and yield its command line as a competitor."""
    with tempfile.TemporaryDirectory(prefix="benchmark-environment-") as environment:
        _run(
            str(PROJECT / ".uv/bin/uv"), "sync", "--quiet", "--locked", "--no-dev", "--compile-bytecode",
            "--project", str(tree), UV_PROJECT_ENVIRONMENT=f"{environment}/venv", UV_PYTHON_DOWNLOADS="never",
            UV_NATIVE_TLS="1", UV_SYSTEM_CERTS="1",
        )  # fmt: skip
        command = Path(environment, "venv/bin/imbrace-lake")
        with prefect_home(command) as variables:
            yield export(variables, name, command)


def _run(*command: str, **variables: str) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "VIRTUAL_ENV"}
    if subprocess.run(command, env={**environment, **variables}, check=False).returncode:
        raise SystemExit(f"`{' '.join(command[:4])} …` failed: see above")
