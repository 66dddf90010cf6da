"""The output of the commands: data to standard output, everything else to standard error."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PROGRAM = "imbrace-lake"
MAX_LISTED = 20
# The folder of an environment that `uvx` made.
_UVX_FOLDER = re.compile(r"[/\\]archive-v\d+[/\\]")
_COMMAND = re.compile(rf"(?<![\w./-]){PROGRAM}(?= [a-z+-])")


def program() -> str:
    """Return the program as the user called it, so that the commands of a hint can be copied."""
    # `./dev` puts no program of a clone on the PATH.
    if name := os.environ.get("IMBRACE_CALLED_AS"):
        return name
    if Path(sys.argv[0]).name == PROGRAM:
        return f"uvx {PROGRAM}" if _UVX_FOLDER.search(sys.prefix) else _typed(sys.argv[0])
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    if module is not None and module.name == "imbrace_cli.__main__":
        return f"{_typed(sys.executable)} -m imbrace_cli"
    return PROGRAM


def _typed(path: str) -> str:
    """Return the name of a program that the shell finds by its name, else its path."""
    name = Path(path).name
    found = shutil.which(name)
    is_found = found is not None and os.path.abspath(found) == os.path.abspath(path)  # noqa: PTH100 - keeps links
    return name if is_found else path


def as_called(text: str) -> str:
    """Replace `imbrace-lake` in the commands of a text, which can come from the core, by `program`."""
    return _COMMAND.sub(lambda _: program(), text)


def stderr_console() -> Console:
    """Return standard error, for everything but data."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def stdout_console() -> Console:
    """Return standard output."""
    from rich.console import Console

    return Console(highlight=False)


def is_watched() -> bool:
    """Return whether a person watches standard error while the command works."""
    # Rich decides, but takes 40 ms to load, and without these only a terminal can be interactive.
    is_forced = any(os.environ.get(name) for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"))
    return (is_forced or sys.stderr.isatty()) and stderr_console().is_interactive


@contextmanager
def waiting(sentence: str) -> Iterator[Callable[[str], object]]:
    """Show on a terminal what the command waits for; give a function that shows another sentence."""
    if is_watched():
        with stderr_console().status(sentence) as status:
            yield status.update
    else:
        yield lambda _: None


def echo(*lines: RenderableType) -> None:
    """Write to standard output; a line of text stays one line, however narrow the terminal."""
    from rich.text import Text

    console = stdout_console()
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, str | Text), markup=False)


def echo_status(sentence: str) -> None:
    """Write a sentence to standard error: one line, which only a terminal breaks."""
    console = stderr_console()
    console.print(as_called(sentence), soft_wrap=not console.is_terminal, markup=False)


def echo_error(sentence: str, kind: str = "error") -> None:
    """Write ``error: …`` to standard error."""
    from rich.text import Text

    color = "bold red" if kind == "error" else "yellow"
    console = stderr_console()
    message = Text.assemble((f"{kind}:", color), " ", as_called(sentence))
    console.print(message, soft_wrap=not console.is_terminal)


def list_problems(problems: Iterable[str], count: int) -> None:
    """Write the first problems of the input, and the number of the others."""
    shown = list(islice(problems, MAX_LISTED))
    for problem in shown:
        echo_error(problem, "input")
    if count > len(shown):
        echo_error(f"and {count - len(shown):,} more", "input")


def prepare_streams() -> None:
    """Replace characters that a terminal cannot show, and streams that are closed (`>&-`).

    Either would otherwise end a command with an error.
    """
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
