"""What the commands say: data to standard output, everything else to standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MOST_LISTED = 20


def stderr_console() -> Console:
    """Standard error, for everything that is no data."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def stdout_console() -> Console:
    """Standard output."""
    from rich.console import Console

    return Console(highlight=False)


def is_watched() -> bool:
    """Whether somebody looks at standard error while the command works."""
    return stderr_console().is_interactive


def echo(*lines: RenderableType) -> None:
    """Write to standard output; a line of text stays one line, however narrow the terminal."""
    from rich.text import Text

    console = stdout_console()
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, str | Text), markup=False)


def echo_status(sentence: str) -> None:
    """Write a sentence to standard error: one line, but for the width of a terminal."""
    console = stderr_console()
    console.print(sentence, soft_wrap=not console.is_terminal, markup=False)


def echo_error(sentence: str, kind: str = "error") -> None:
    """Write ``error: …`` to standard error."""
    from rich.text import Text

    color = "bold red" if kind == "error" else "yellow"
    console = stderr_console()
    message = Text.assemble((f"{kind}:", color), " ", sentence)
    console.print(message, soft_wrap=not console.is_terminal)


def list_problems(problems: Iterable[str], count: int) -> None:
    """Write the first problems of the input, and how many more there are."""
    shown = list(islice(problems, MOST_LISTED))
    for problem in shown:
        echo_error(problem, "input")
    if count > len(shown):
        echo_error(f"and {count - len(shown):,} more", "input")


def prepare_streams() -> None:
    """Let no character that a terminal cannot show end a command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
