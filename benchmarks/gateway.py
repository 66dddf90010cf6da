"""The fake gateway as a process of its own: `python -m benchmarks.gateway '{"conversations": 10}'`."""

from __future__ import annotations

import json
import sys

from imbrace_sandbox import SandboxOptions, serve


def main() -> None:
    """Serve until SIGTERM; the first line printed says where."""
    given = json.loads(sys.argv[1])
    options = SandboxOptions(prerender=True, **{**given, "sizes": tuple(given.get("sizes", ()))})

    def announce(url: str) -> None:
        facts = {"url": url, "token": options.token, "organization": options.organization_id}
        print(json.dumps(facts), flush=True)

    serve(options, port=0, on_start=announce)


if __name__ == "__main__":
    main()
