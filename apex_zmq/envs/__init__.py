"""Environments: lanes that are stepped one decision at a time."""
