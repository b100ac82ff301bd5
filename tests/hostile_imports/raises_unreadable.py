"""A module that raises what cannot be printed."""


class UnreadableError(Exception):
    """Its message raises."""

    def __str__(self):
        raise RuntimeError


raise UnreadableError
