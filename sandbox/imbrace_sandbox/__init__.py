"""A fake iMBrace server gateway: a real HTTP server with seeded content and seeded faults."""

from imbrace_sandbox.hosting import serve
from imbrace_sandbox.options import SandboxOptions
from imbrace_sandbox.server import Sandbox

__all__ = ["Sandbox", "SandboxOptions", "serve"]
