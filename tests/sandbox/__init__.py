"""The fake gateway, read over real HTTP."""
