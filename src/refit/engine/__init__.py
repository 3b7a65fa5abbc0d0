"""All that exists for speed alone. Without this folder, everything still works, but more slowly."""

TESTED_VERSIONS = ("2.13.0",)
"""Versions of PyTorch. With any other, the reference engine takes the steps, as this one relies on PyTorch's internals."""
