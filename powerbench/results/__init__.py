"""Run files: what they hold, how they are written, read back and compared. Imports no torch."""
