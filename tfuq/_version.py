"""The version, in one place for the package and `setup.py`."""

__version__ = "0.2.0.dev0"
