"""The user's mistakes: one exception type, shown as one line by the command line (exit status 2)."""


class UserError(ValueError):
    """Something the user gave is wrong: the message says what, where (file, line, field) and what to do.

    Raised only for input (files, records, configs, flags, workdirs). The command line prints the message and exits with
    status 2; every other exception is a bug of ours and keeps its traceback.
    """
