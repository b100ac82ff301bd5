"""Errors that the command line prints as one line: the user's to mend (exit status 2), and a lost device (1)."""


class UserError(ValueError):
    """Bad input. The message is one line that says what was wrong, what it was and what is allowed."""


class DeviceLostError(RuntimeError):
    """The device no longer answers, after an illegal access for example: this process can measure nothing more."""


def in_words(error: BaseException) -> str:
    """What other people's code raised, in one line that can be written anywhere."""
    return f"{type(error).__name__[:100]}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of its message; its type where it has none. Of an error whose message raises, that it does."""
    try:
        text = str(error)
    except Exception:  # as it is theirs too
        text = "its message cannot be read"
    lines = text.strip().splitlines() or [type(error).__name__]
    return lines[0][:300].encode(errors="replace").decode()  # half a surrogate pair cannot be stored
