"""The regression gate: is this run slower than that one, and is it sure? Two stored runs are compared without torch."""
