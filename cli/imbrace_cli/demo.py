"""`imbrace-lake demo`: export from a fake gateway into a lake, and query it."""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imbrace_cli import options
from imbrace_cli.exit_codes import COMPLETE
from imbrace_lake.errors import InputError, UsageError

if TYPE_CHECKING:
    from imbrace_sandbox import Sandbox

EXAMPLES = """
\b
Examples:
  imbrace-lake demo
  imbrace-lake demo --conversations 1000 --lake /tmp/lake
"""

# The defaults; the command that the end of a demo shows leaves them out.
_USUAL = {"--lake": "lake", "--conversations": "120", "--seed": "7"}


def demo(
    lake: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the lake.")] = Path(
        _USUAL["--lake"]
    ),
    conversations: Annotated[
        int, typer.Option(min=1, max=20_000, metavar="N", help="Number of conversations.")
    ] = int(_USUAL["--conversations"]),
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Random seed.")] = int(_USUAL["--seed"]),
    port: Annotated[
        int,
        typer.Option(min=0, max=65_535, metavar="N", help="Port of the fake gateway; any by default."),
    ] = 0,
) -> None:
    """Export from a fake gateway into ./lake, show the lake, and query it.

    Needs no token, no bucket and no server. The conversations are generated; a second demo finds them
    unchanged and writes none of them again.
    """
    from imbrace_sandbox import Sandbox, SandboxOptions

    if "://" in str(lake) or ":/" in str(lake):
        raise UsageError("the demo writes only to a local folder: use export to write to s3://")
    with ExitStack() as running:
        try:
            box = running.enter_context(Sandbox(SandboxOptions(conversations=conversations, seed=seed), port))
        except OSError:
            raise InputError(f"port {port} is taken or not permitted: choose another by --port") from None
        given = {"--lake": str(lake), "--conversations": str(conversations), "--seed": str(seed)}
        words = [word for name, value in given.items() if value != _USUAL[name] for word in (name, value)]
        _run(box, lake, shlex.join(["demo", *words]))


def _run(box: Sandbox, lake: Path, again: str) -> None:
    from imbrace_cli.demo_report import show_report
    from imbrace_cli.inputs import stage_in_memory
    from imbrace_cli.run import export_flow, run_watched
    from imbrace_cli.summary import show_outcome
    from imbrace_cli.terminal import echo
    from imbrace_flows.params import ExportParams

    echo(
        f"A fake gateway serves {len(box.conversations):,} conversations of {len(box.phones):,} phone"
        f" numbers at {box.url}",
        "",
    )
    folder_name = str(lake) if lake.is_absolute() or str(lake).startswith("..") else f"./{lake}"
    settings = {
        "token": box.options.token,
        "organization": box.options.organization_id,
        "gateway": box.url,
        "lake": folder_name,
        # A short list has a larger share of unreadable entries than a real one.
        "tolerated_unreadable": 1,
    }
    with options.environment(settings):
        checked = options.checked_settings()
        # Numbers as people write them: with spaces, brackets and repeats, and a few invalid ones.
        phones = stage_in_memory("\n".join(box.messy_phones()).encode(), "numbers.txt")
        outcome = run_watched(checked, export_flow, ExportParams(phones=phones), {})
    show_outcome(outcome, "imbrace-lake export")
    if outcome.exit_code == COMPLETE:
        show_report(Path(os.path.abspath(lake)), folder_name)  # noqa: PTH100 - resolve() would follow links
        echo("", *_next_steps(outcome.summary.flow_run_url, again))
    raise typer.Exit(outcome.exit_code)


def _next_steps(run_url: str | None, again: str) -> list[str]:
    from imbrace_cli.terminal import program

    look = [f"See the run:    {run_url}"] if run_url else []
    return [
        *look,
        f"Run it again:   {program()} {again}      (finds everything unchanged)",
        f"Your own:       {program()} export --phones FILE --organization ORG --lake URL",
    ]
