"""The machinery of tagstream: it knows no feature and no domain by name."""

__version__ = "0.1.0"
