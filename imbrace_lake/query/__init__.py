"""Read a lake: SQL views with the field's definitions, and a Python interface."""
