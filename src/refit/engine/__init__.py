"""All that exists for speed alone. Without this folder, everything works as well, more slowly."""
