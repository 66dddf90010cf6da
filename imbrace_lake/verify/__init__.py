"""Verify a lake: find damaged objects, and counts that differ from the gateway's."""
