"""Prefect flows and their parameter models."""
