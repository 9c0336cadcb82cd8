"""The one exception that is a message to the person at the keyboard."""


class UserError(Exception):
    """A mistake a person can mend; shown as one line, without a traceback.

    The message names the file or key, the cause and the way out.
    """


def one_of(what: str, value: object, valid: list[str]) -> UserError:
    """The error for a name that is not known, listing those that are."""
    known = f"valid are: {', '.join(sorted(valid))}" if valid else "there are none"
    return UserError(f"{what}: unknown {value!r}; {known}")
