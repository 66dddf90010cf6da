"""The stand-in gateway, read over real HTTP."""
