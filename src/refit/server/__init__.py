"""Prefect's server: what is registered with it, what it looks after by itself, and what it knows of runs."""
