"""The output of the commands: data to standard output, everything else to standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MOST_LISTED = 20


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
    return stderr_console().is_interactive


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
    console.print(sentence, soft_wrap=not console.is_terminal, markup=False)


def echo_error(sentence: str, kind: str = "error") -> None:
    """Write ``error: …`` to standard error."""
    from rich.text import Text

    color = "bold red" if kind == "error" else "yellow"
    console = stderr_console()
    message = Text.assemble((f"{kind}:", color), " ", sentence)
    console.print(message, soft_wrap=not console.is_terminal)


def list_problems(problems: Iterable[str], count: int) -> None:
    """Write the first problems of the input, and the number of the others."""
    shown = list(islice(problems, MOST_LISTED))
    for problem in shown:
        echo_error(problem, "input")
    if count > len(shown):
        echo_error(f"and {count - len(shown):,} more", "input")


def prepare_streams() -> None:
    """Replace characters that a terminal cannot show, which would otherwise end a command with an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
