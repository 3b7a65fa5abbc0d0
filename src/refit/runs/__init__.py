"""Runs: their keys and recipes, their results, and the files that nothing needs any more."""
