"""A `Comparison` for people (terminal, pull request) and for machines (JUnit, JSON)."""
