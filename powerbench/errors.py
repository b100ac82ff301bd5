"""The one base of every error that is the user's to mend: the command line prints it as one line and exits with 2."""


class UserError(ValueError):
    """Bad input. The message is one line that says what was wrong, what it was and what is allowed."""
