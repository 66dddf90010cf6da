"""Prefect flows, their parameter models and the blocks they take."""
