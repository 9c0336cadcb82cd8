"""Failures that are nobody's mistake at the command line."""

from phototagger.errors import UserError


class FailedError(UserError):
    """The work did not succeed: one line for the person, exit status 1 instead of 2."""
