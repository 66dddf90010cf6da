"""Other tools that can do the job, and their environment.

The environment is made at first use, and again when `requirements.txt` changes. This module imports only
the standard library, because the peers import it too.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FOLDER = Path(__file__).with_name(".venv")


def peers_python(folder: Path = FOLDER, requirements: Path = REQUIREMENTS) -> str:
    """Return the interpreter of an environment that has what the requirements list.

    Raises:
        SystemExit: The environment could not be made; uv or pip has printed why.
    """
    python, stamp = folder / "bin" / "python", folder / "requirements.txt"
    wanted = requirements.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    print(f"installing the peers into {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    for command in _commands(folder, requirements, shutil.which("uv")):
        if subprocess.run(command, check=False).returncode:
            raise SystemExit("the peers could not be installed: see above; the package index is needed")
    # Last, so that an incomplete environment is made again.
    stamp.write_text(wanted)
    return str(python)


def _commands(folder: Path, requirements: Path, uv: str | None) -> list[list[str]]:
    python = str(folder / "bin" / "python")
    if uv:
        return [
            [uv, "venv", "--quiet", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--quiet", "--python", python, "-r", str(requirements)],
        ]
    return [
        [sys.executable, "-m", "venv", str(folder)],
        [python, "-m", "pip", "install", "--quiet", "--no-input", "-r", str(requirements)],
    ]
