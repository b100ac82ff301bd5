"""Programs of the project itself, run from a checkout; not part of the package."""
