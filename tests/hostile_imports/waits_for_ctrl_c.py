"""A module during whose import the user presses Ctrl-C."""

import signal

signal.raise_signal(signal.SIGINT)
