"""A stand-in for the iMBrace server gateway: a real HTTP server with seeded content and seeded trouble."""

from sandbox.hosting import serve
from sandbox.options import SandboxOptions
from sandbox.server import Sandbox

__all__ = ["Sandbox", "SandboxOptions", "serve"]
