"""The program `imbrace-lake`: ends on Ctrl-C also while its modules are loaded, and after its command."""

from __future__ import annotations

# Nothing that takes time: until `main` is called, Ctrl-C shows a traceback.
import gc
import os
import signal
import sys

from imbrace_cli.exit_codes import INTERRUPTED

# Modules are objects that stay, so a garbage collection while they are loaded finds next to nothing.
LOADING_THRESHOLD = 100_000


def _end(*_: object) -> None:
    # Not `end_process`, whose module may be one of those that are being loaded.
    try:
        os.write(2, b"\ninterrupted: run the same command to start again\n")
    finally:
        os._exit(INTERRUPTED)


def main() -> int:
    """Run the command of the arguments, and return its exit code."""
    defaults = {signal.SIGINT: signal.default_int_handler}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Not if it is ignored.
        if signal.getsignal(number) is defaults.get(number, signal.SIG_DFL):
            signal.signal(number, _end)
    gc.set_threshold(LOADING_THRESHOLD)
    import threading

    from imbrace_cli.interrupt import LAST_SECONDS, end_process
    from imbrace_cli.main import main as run

    code = run()
    if code == INTERRUPTED:
        # Prefect's threads would wait for a server that does not answer.
        end = threading.Timer(LAST_SECONDS, end_process)
        end.daemon = True
        end.start()
    # At its end, the process collects garbage, which takes 0.1 s and only frees memory. DuckDB would report
    # that its objects are not freed.
    if "duckdb" not in sys.modules:
        gc.freeze()
    return code


if __name__ == "__main__":
    sys.exit(main())
