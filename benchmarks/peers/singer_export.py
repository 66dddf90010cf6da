"""Singer: tap and target as two processes with a pipe between them, which is how Singer runs."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.metrics import Metrics, cpu_seconds, most_memory_bytes, read_job


def half(side: str, folder: Path) -> None:
    """Be the tap or the target, as the folder's configuration says, and leave a report of what that cost."""
    config = folder / f"{side}.json"
    # Imported here, because the tap needs nothing of the target, and neither counts as work.
    if side == "tap":
        from benchmarks.peers.singer_tap import ImbraceTap

        work = ImbraceTap(config=config).sync_all
    else:
        from benchmarks.peers.singer_target import ParquetTarget

        work = ParquetTarget(config=config).listen
    logging.disable(logging.WARNING)
    began, cpu = time.time(), cpu_seconds()
    work()
    costs = (began, time.time(), cpu_seconds() - cpu, most_memory_bytes())
    (folder / f"{side}.report").write_text(json.dumps(costs))


def main() -> None:
    """Do one job, or one half of it."""
    if len(sys.argv) > 1:
        half(sys.argv[1], Path(sys.argv[2]))
        return
    job = read_job()
    with tempfile.TemporaryDirectory(prefix="benchmark-singer-") as working:
        folder = Path(working)
        tap_config = {
            "url": job.url,
            "token": job.token,
            "organization": job.organization,
            "phones": job.phones,
        }
        (folder / "tap.json").write_text(json.dumps(tap_config))
        (folder / "target.json").write_text(json.dumps({"folder": job.folder}))
        tap = subprocess.Popen(_command("tap", folder), stdout=subprocess.PIPE)
        target = subprocess.Popen(_command("target", folder), stdin=tap.stdout, stdout=subprocess.DEVNULL)
        assert tap.stdout is not None  # noqa: S101 - narrows the type for mypy
        # Otherwise the tap would not notice that the target is gone.
        tap.stdout.close()
        if target.wait() or tap.wait():
            raise SystemExit("tap or target failed: see above")
        costs = [json.loads((folder / f"{side}.report").read_text()) for side in ("tap", "target")]
    began, ended, cpu, memory = zip(*costs, strict=True)
    # The target waits for the tap's first line, so the tap's begin is the begin of the work.
    Metrics(max(ended) - began[0], sum(cpu), sum(memory)).print()


def _command(side: str, folder: Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "benchmarks.peers.singer_export", side, str(folder))


if __name__ == "__main__":
    main()
