"""User mistakes: one exception type, shown as one line by the command line (exit status 2)."""


class UserError(ValueError):
    """Something the user gave is wrong. The message says what, where (file, line, field) and what to do.

    Raised only for input (files, records, configs, flags, workdirs). The command line prints the message and exits with status 2. Every
    other exception is a bug of ours and keeps its traceback.
    """


def printable(text: str) -> str:
    """Makes one line of text safe for a terminal: unprintable characters become escapes, such as "\\x1b"."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
