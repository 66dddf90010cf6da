"""The environment of the processes that the command line starts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_NAMES = frozenset(
    {
        "HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TERM", "TEMP", "TMP", "TMPDIR", "TZ",
        "TZDIR", "USER", "VIRTUAL_ENV",
        # Where libraries and certificates are.
        "DYLD_LIBRARY_PATH", "LD_LIBRARY_PATH", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE",
        # How Python and native libraries use the machine.
        "ARROW_DEFAULT_MEMORY_POOL", "MALLOC_ARENA_MAX", "OMP_NUM_THREADS",
        # With these, coverage.py measures a process that a measured one starts.
        "COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START",
    }
)  # fmt: skip
# PYTHON… without an underscore is the interpreter's; with one, other programs', which can contain tokens.
_FAMILIES = re.compile(r"PYTHON[A-Z0-9]+|LC_[A-Z]+|XDG_[A-Z]+_(HOME|DIR|DIRS)")


def inherited_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that a child process gets: those it needs to start, and no secret.

    A process can outlive the command that started it, and every program of the same user can read its
    environment. So this lists the variables that are passed on: tokens, cloud keys and proxies with a
    password have too many names to list.

    Args:
        environment: The variables of this process, unless given.
    """
    present = os.environ if environment is None else environment
    return {
        name: value
        for name, value in present.items()
        if name.upper() in _NAMES or _FAMILIES.fullmatch(name.upper())
    }
