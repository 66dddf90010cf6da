"""The program `imbrace-lake`: ends on Ctrl-C also while its modules are loaded, and after its command."""

from __future__ import annotations

import gc
import signal
import sys
import threading

from imbrace_cli.interrupt import INTERRUPTED, LAST_SECONDS, end_process

# Modules are objects that stay, so a garbage collection while they are loaded finds next to nothing.
LOADING_THRESHOLD = 50_000


def main() -> int:
    """Run the command of the arguments, and return its exit code."""
    # Not if Ctrl-C is ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: end_process("interrupted"))
    gc.set_threshold(LOADING_THRESHOLD)
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
