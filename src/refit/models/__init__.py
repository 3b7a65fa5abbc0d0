"""Architectures, one a file, and how the settings choose one."""
