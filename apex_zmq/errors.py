"""The base of all errors that a user can mend."""


class UserError(Exception):
    """Bad input. The message is one line that names the thing and the remedy; programs exit with 2."""
