"""Bytes by their digest, and files that appear whole."""
