"""All that exists for speed alone. Without this folder, everything works as well, more slowly."""

TESTED_VERSIONS = ("2.13.0",)
"""Of PyTorch. With any other the reference engine takes the steps, as these here rest on how PyTorch is made inside."""
