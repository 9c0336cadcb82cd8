"""The exceptions that are a message to the person at the keyboard."""


class UserError(Exception):
    """A mistake a person can mend; shown as one line, without a traceback.

    The message names the file or key, the cause and the way out.
    """


class TransientError(UserError):
    """A failure that can pass by itself: the same job may be tried again.

    A model server that went away, a file system that was not there, a disk that was full.
    """


def one_of(what: str, value: object, valid: list[str]) -> UserError:
    """The error for a name that is not known, listing those that are."""
    known = f"valid are: {', '.join(sorted(valid))}" if valid else "there are none"
    return UserError(f"{what}: unknown {value!r}; {known}")
