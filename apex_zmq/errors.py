"""Errors that a user can correct; the message is one line: what happened, and what to do."""

# The remedy for a missing package.
INSTALL = "make .venv/.installed in a checkout, or pip install --constraint constraints.txt ."


class UserError(Exception):
    """Base of all errors caused by bad input; programs print the message and exit with 2."""


class ConfigError(UserError):
    """A setting, option or address that cannot be used."""


class MismatchError(UserError):
    """The run that a process joins has other settings, or another version of the protocol."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read, written or used."""
