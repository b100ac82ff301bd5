"""Errors that the command line prints as one line: the user's to mend (exit status 2), and a lost device (1)."""


class UserError(ValueError):
    """Bad input. The message is one line that says what was wrong, what it was and what is allowed."""


class DeviceLostError(RuntimeError):
    """The device no longer answers, after an illegal access for example: this process can measure nothing more."""
