"""The package's version, for all that must not import the package to know it."""

__version__ = "0.1.0"
