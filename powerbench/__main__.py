"""`python -m powerbench`, where the command itself is not on the path."""

from powerbench.cli import main

main()
