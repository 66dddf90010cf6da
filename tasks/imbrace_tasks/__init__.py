"""Prefect tasks: a name, a retry rule and one call into the core each."""
