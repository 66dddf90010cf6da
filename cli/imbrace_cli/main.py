"""The command line `imbrace-lake`: runs a command, and turns errors into a sentence and an exit code.

This module imports only what every command needs: ``--help`` does not wait for Prefect.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import takewhile
from typing import Annotated, Any

import typer

from imbrace_cli.exit_codes import CLOSED_PIPE, COMPLETE, FAILED, INTERRUPTED, WRONG_USE
from imbrace_cli.interrupt import Interrupted, current_interrupt, interruptible
from imbrace_cli.terminal import PROGRAM, as_called, echo_error, prepare_streams, program

# They run until Ctrl-C, and end others in order.
_UNTIL_INTERRUPTED = ("sandbox", "server", "up")
_NO_MEMORY = re.compile("cannot allocate memory|failed to map segment|can't start new thread", re.IGNORECASE)

_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy")

STOPPED = "run the same command to start again"

# What each command does, in the order of the list. Its module and function have its name, with underscores.
_COMMANDS = {
    "demo": "Export generated conversations into ./lake, and query it.",
    "export": "Export conversations into the lake.",
    "backfill": "Read conversations again, or a window of time.",
    "plan": "Estimate an export; writes nothing.",
    "check": "Test token, gateway and lake; report what to fix.",
    "verify": "Read every object; report what is damaged.",
    "compact": "Bring the tables for queries up to date.",
    "repair": "Rewrite rows of earlier versions for all query engines.",
    "freshness": "Show the age of each proof.",
    "sql": "Query the lake; without a query, a prompt.",
    "new-key": "Create a new lake.json for a lake that lost it.",
    "up": "Run server, deployments and a worker until Ctrl-C.",
    "setup": "Prepare a Prefect server for deployments.",
    "budget": "Show or set the requests per second of all runs.",
    "notify": "Send messages about failed runs and stale lakes.",
    "sandbox": "Serve the fake gateway.",
}
# A negative number is a wrong value, not an unknown option.
_CONTEXTS = {"budget": {"ignore_unknown_options": True}}


# Options whose last value would silently replace the others, and what to do instead.
_INPUTS = {
    "--phones": "name a folder or a pattern of lists, or call the command for each",
    "--conversations": "put the ids into one list",
    "--rerun": "call the command for each run",
}


def make_app(only: str | None = None) -> typer.Typer:
    """Return the command line.

    Args:
        only: The name of the only command to load, because all of them take 0.1 s; unknown names load all.
    """
    if only not in (*_COMMANDS, "server"):
        only = None
    app = typer.Typer(
        name=PROGRAM,
        help=(
            "Every iMBrace conversation of a list of phone numbers, proven complete, as Parquet in your data"
            " lake."
        ),
        epilog="New here? `imbrace-lake demo` needs no token, no bucket and no server.",
        add_completion=False,
        pretty_exceptions_enable=False,
        # Plain help is shorter, appears at once, and is the same in a pipe.
        rich_markup_mode=None,
        context_settings={"max_content_width": 100},
    )
    app.callback(invoke_without_command=True)(_first)
    for name, summary in _COMMANDS.items():
        if only in (None, name):
            function = name.replace("-", "_")
            module = import_module(f"imbrace_cli.{function}")
            app.command(
                name, epilog=module.EXAMPLES, short_help=summary, context_settings=_CONTEXTS.get(name)
            )(getattr(module, function))
    if only in (None, "server"):
        from imbrace_cli import server

        app.add_typer(server.app, name="server", short_help="Start, stop or find the local Prefect server.")
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit


def _first(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    else:
        until_interrupted = context.invoked_subcommand in _UNTIL_INTERRUPTED
        context.with_resource(interruptible(until_interrupted=until_interrupted))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    prepare_streams()
    try:
        return _run(arguments)
    except (BrokenPipeError, SystemExit) as exc:
        # So typer and rich end a process whose output nothing reads any more.
        cause = exc.__context__ if isinstance(exc, SystemExit) else exc
        if isinstance(cause, BrokenPipeError):
            return CLOSED_PIPE
        raise
    finally:
        _discard_unwritable()


def _discard_unwritable() -> None:
    """Prevent that Python reports at its end what it cannot write, and ends with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: Sequence[str] | None) -> int:
    from imbrace_lake.errors import ImbraceLakeError, SettingsError, UsageError

    try:
        _raise_if_given_twice(sys.argv[1:] if arguments is None else arguments)
        code = _command(arguments)(args=arguments, prog_name=program(), standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as exc:
        echo_error(_explained(exc))
        return WRONG_USE
    except Interrupted as exc:
        echo_error(str(exc), "interrupted")
        return INTERRUPTED
    except ImbraceLakeError as exc:
        for problem in exc.problems if isinstance(exc, SettingsError) else (str(exc),):
            echo_error(problem)
        if current_interrupt().is_requested:
            return INTERRUPTED
        return WRONG_USE if isinstance(exc, UsageError) else FAILED
    except Exception as exc:
        # A library can turn Ctrl-C into its own error.
        if current_interrupt().is_requested:
            echo_error(STOPPED, "interrupted")
            return INTERRUPTED
        reason = _reason(exc)
        if reason is None:
            raise
        echo_error(reason)
        return FAILED
    if code == INTERRUPTED:
        echo_error(STOPPED, "interrupted")
    return int(code or COMPLETE)


def _command(arguments: Sequence[str] | None) -> Any:
    """Return the command, with examples as the user would call them.

    If the first argument names a command, the result has only that one.
    """
    first = (sys.argv[1:] if arguments is None else arguments)[:1]
    command = typer.main.get_command(make_app(*first))
    for one in (command, *getattr(command, "commands", {}).values()):
        one.epilog = one.epilog and as_called(one.epilog)
    return command


def _raise_if_given_twice(arguments: Sequence[str]) -> None:
    """Reject an input that is given twice, of which only the last one would be read.

    Raises:
        UsageError: There is one.
    """
    from imbrace_lake.errors import UsageError

    given = [argument.partition("=")[0] for argument in takewhile(lambda one: one != "--", arguments)]
    for name, instead in _INPUTS.items():
        if given.count(name) > 1:
            raise UsageError(f"{name} is given {given.count(name)} times, and one is read: {instead}")


def _reason(exc: BaseException | None) -> str | None:
    """Return a sentence for an exception, or one of its causes, that the environment explains."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        match exc:
            case MemoryError() | OSError(errno=errno.ENOMEM):
                return _no_memory()
            # From libraries that cannot be loaded, and from threads without memory for a stack.
            case ImportError() | RuntimeError() if _NO_MEMORY.search(str(exc)):
                return _no_memory()
            # CPython raises it if there is no memory for the exception itself.
            case SystemError() if _limit():
                return _no_memory()
            case OSError(errno=errno.ENOSPC, filename=None):
                return "the output cannot be written: no space is left where standard output goes"
            case ImportError() if "socksio" in str(exc):
                proxies = [name for name in _PROXIES if os.environ.get(name, "").startswith("socks")]
                return (
                    "a SOCKS proxy needs the package socksio: install it, or set another proxy in"
                    f" {' and '.join(proxies) or 'the environment'}"
                )
            case RuntimeError() if str(exc).startswith("Found incompatible versions"):
                return f"the Prefect server cannot be used: {str(exc).rstrip('.')}"
        exc = exc.__cause__ or exc.__context__
    return None


def _no_memory() -> str:
    return f"this process gets no more memory{_limit()}: raise the limit, or free memory"


def _limit() -> str:
    bytes_allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    is_limited = bytes_allowed != resource.RLIM_INFINITY
    return f" (ulimit -v allows {bytes_allowed >> 20:,} MB)" if is_limited else ""


def _explained(exc: typer.TyperException) -> str:
    from pydantic import ValidationError

    message, cause = exc.format_message(), exc.__cause__
    inputs = [str(one["input"]) for one in cause.errors()] if isinstance(cause, ValidationError) else []
    if any(one.strip(" +-").lower() == "nan" for one in inputs):
        # It is also outside of any bounds, which Pydantic reports.
        message = re.sub("Input should .*", "it must be a number", message)
    if "--token" in message:
        return (
            "there is no option --token, because every user of this machine can read the arguments of a"
            " command: set IMBRACE_TOKEN, or write it into .env"
        )
    context: typer.Context | None = getattr(exc, "ctx", None)
    if "://" in message and context is not None and context.info_name == "notify":
        return (
            "the address of a webhook is not an argument, because every user of this machine can read the"
            " arguments of a command: set IMBRACE_SLACK_URL or IMBRACE_TEAMS_URL, or enter it when asked"
        )
    if context is not None and context.info_name == "sql" and " " in getattr(exc, "option_name", ""):
        return (
            "a query that begins with a comment looks like an option: write -- before it, as in"
            f' {PROGRAM} sql --lake lake -- "-- a comment" …'
        )
    # Neutral, because `echo_error` writes the program as it was called.
    path = "" if context is None else f"{PROGRAM}{context.command_path.removeprefix(program())}"
    hint = f" (see {path} --help)" if path else ""
    return f"{message.rstrip('.')}{hint}"
