"""`imbrace-lake sandbox`: the fake gateway."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imbrace_cli.terminal import echo, echo_error, program
from imbrace_lake.errors import InputError, UsageError

if TYPE_CHECKING:
    from imbrace_sandbox import SandboxOptions

EXAMPLES = """
\b
Examples:
  imbrace-lake sandbox --conversations 1000 --seed 7
  imbrace-lake sandbox --file conversations.jsonl.gz --page-cap 50
  imbrace-lake sandbox --mixed 0.1 --option stall_seconds=5 --option gateway_timeout_seconds=1
  imbrace-lake sandbox --option rates=401=0.1,502:html=0.05 --option links_shape=envelope
"""


def _show_options(wanted: bool) -> None:
    if wanted:
        from imbrace_sandbox import SandboxOptions

        for name, description in SandboxOptions.descriptions().items():
            echo(f"{name:<24}{description}")
        raise typer.Exit


def sandbox(
    port: Annotated[
        int, typer.Option(min=0, max=65_535, metavar="N", help="Port; 0 for any free port.")
    ] = 8899,
    host: Annotated[
        str,
        typer.Option(
            metavar="HOST",
            help="Interface to bind; anything but 127.0.0.1 exposes the sandbox to the network.",
        ),
    ] = "127.0.0.1",
    conversations: Annotated[
        int | None, typer.Option(metavar="N", help="Number of conversations; 120 by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Random seed.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Serve the conversations of this .jsonl or .jsonl.gz file."),
    ] = None,
    page_cap: Annotated[
        int | None, typer.Option(metavar="N", help="Maximum messages per page, even if more are requested.")
    ] = None,
    mixed: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of requests that fail with a temporary fault."),
    ] = None,
    budget_requests: Annotated[
        int | None,
        typer.Option(metavar="N", help="Requests per client in half an hour; further ones get 429."),
    ] = None,
    latency_seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Added to every answer.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Any other option; repeat it for more."),
    ] = None,
    _options: Annotated[
        bool, typer.Option("--options", help="List all options.", callback=_show_options, is_eager=True)
    ] = False,
) -> None:
    """Serve a fake gateway until Ctrl-C: generated conversations, and faults on demand."""
    from imbrace_sandbox import serve

    flags = {
        "conversations": conversations,
        "seed": seed,
        "file": file,
        "page_cap": page_cap,
        "mixed": mixed,
        "budget_requests": budget_requests,
        "latency_seconds": latency_seconds,
    }
    if file is not None and not file.exists():
        raise InputError(f"{file} does not exist: check the path")
    chosen = parse_options(option or []) | {name: value for name, value in flags.items() if value is not None}
    try:
        options = _make(chosen)
        serve(options, host, port, on_start=lambda url: _describe(url, options))
    except ValueError as exc:
        raise UsageError(str(exc)) from None
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else "there is no such host"
        raise InputError(
            f"cannot listen on {host}:{port} ({reason}): choose another by --port or --host"
        ) from None
    echo_error("the fake gateway has ended", "stopped")


def _make(chosen: Mapping[str, Any]) -> SandboxOptions:
    from imbrace_sandbox import SandboxOptions

    return SandboxOptions(**chosen)


def _describe(url: str, options: SandboxOptions) -> None:
    from imbrace_sandbox.main import describe

    echo(
        *describe(url, options),
        "",
        "Export from it:",
        "",
        f"  export IMBRACE_TOKEN={options.token}",
        f"  export IMBRACE_GATEWAY={url} IMBRACE_ORGANIZATION={options.organization_id}",
        "  export IMBRACE_LIST_SCHEMES=http",
        f"  {program()} export --phones {url.removesuffix('/3rd')}/_sandbox/phones --lake ./lake",
    )


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``name=value`` pairs by the types of the options.

    Raises:
        UsageError: An option is unknown, or its value cannot be read.
    """
    from imbrace_sandbox import SandboxOptions
    from imbrace_sandbox.main import read_option

    chosen = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or name not in SandboxOptions.descriptions():
            raise UsageError(f"there is no option {name}: see imbrace-lake sandbox --options")
        try:
            chosen[name] = read_option(name, text.strip())
        except ValueError:
            raise UsageError(
                f"option {name} cannot be {text.strip()!r}: see imbrace-lake sandbox --options"
            ) from None
    return chosen
