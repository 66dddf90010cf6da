"""The command `imbrace-sandbox`: serves the fake gateway until Ctrl-C, with one flag for each option.

It does not need imbrace-lake, whose command `imbrace-lake sandbox` serves the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from imbrace_sandbox.hosting import LOCALHOST, serve
from imbrace_sandbox.options import SandboxOptions

_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; return the exit code."""
    parser = _parser()
    chosen = vars(parser.parse_args(arguments))
    host, port = chosen.pop("host"), chosen.pop("port")
    try:
        options = SandboxOptions(**chosen)
        serve(options, host, port, on_start=lambda url: _show(*describe(url, options)))
    except ValueError as exc:
        parser.error(str(exc))
    except (OSError, OverflowError) as exc:
        parser.error(f"cannot listen on {host}:{port} ({exc}): choose another address by --port or --host")
    return 0


def read_option(name: str, text: str) -> Any:
    """Read the value of an option from text, by the option's type.

    Raises:
        KeyError: The option does not exist.
        ValueError: The text is not a value of its type.
    """
    kinds = {each.name: str(each.type) for each in fields(SandboxOptions)}
    return _reader(kinds[name])(text)


def describe(url: str, options: SandboxOptions) -> list[str]:
    """Return the lines that a client of a running fake gateway needs."""
    control = f"{url.removesuffix('/3rd')}/_sandbox"
    return [
        "The fake gateway listens until Ctrl-C.",
        "",
        f"  gateway       {url}",
        f"  token         {options.token}",
        f"  organization  {options.organization_id}",
        f"  phones        {control}/phones",
        f"  faults        {control}/faults",
        f"  counts        {control}/stats",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="imbrace-sandbox",
        description="Serve a fake iMBrace gateway: made-up conversations, and faults on demand.",
        # Missing options have the defaults of SandboxOptions.
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--port", type=int, default=8899, metavar="N", help="0 for any free port.")
    parser.add_argument(
        "--host", default=LOCALHOST, help="Any other address than loopback admits other machines."
    )
    for name, meaning in SandboxOptions.descriptions().items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=_reader_of(name),
            metavar="VALUE",
            help=meaning.replace("%", "%%"),
        )
    return parser


def _reader_of(name: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return read_option(name, text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"cannot be {text!r}") from None

    return read


def _reader(kind: str) -> Callable[[str], Any]:
    readers: dict[str, Callable[[str], Any]] = {
        "int": int,
        "float": float,
        "str": str,
        "Path": Path,
        "bool": _truth,
        "tuple[int, ...]": lambda text: tuple(int(each) for each in text.split(",")),
        "Mapping[str, float]": lambda text: {name: float(value) for name, value in _pairs(text)},
        "Mapping[str, str]": lambda text: dict(_pairs(text)),
    }
    return readers[kind.removesuffix(" | None")]


def _truth(text: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise ValueError(text)
    return _TRUTHS[text.lower()]


def _pairs(text: str) -> list[tuple[str, str]]:
    found = [each.rpartition("=") for each in text.split(",")]
    if any(not sign for _, sign, _ in found):
        raise ValueError(text)
    return [(name.strip(), value.strip()) for name, _, value in found]


def _show(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":  # pragma: no cover  (another process, whose parts are tested)
    sys.exit(main())
