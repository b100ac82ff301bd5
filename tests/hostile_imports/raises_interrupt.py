"""A module that raises what looks like Ctrl-C."""


class Interrupt(KeyboardInterrupt):
    """Not the user's."""


raise Interrupt("not the user's")
