"""Prefect around one function of `refit` each: run names, retries, caching."""
