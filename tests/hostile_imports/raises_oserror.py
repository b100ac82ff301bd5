"""A module as of a package whose shared library is missing."""

raise OSError("libnothing.so.1: cannot open shared object file")
