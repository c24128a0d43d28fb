"""The user's mistakes: one exception type, shown as one line by the command line (exit status 2)."""


class UserError(ValueError):
    """Something the user gave is wrong: the message says what, where (file, line, field) and what to do.

    Raised only for input (files, records, configs, flags, workdirs). The command line prints the message and exits with
    status 2; every other exception is a bug of ours and keeps its traceback.
    """


def printable(text: str) -> str:
    """One line of text with nothing in it that a terminal would obey: what is not printable stands as its escape, "\\x1b"."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
