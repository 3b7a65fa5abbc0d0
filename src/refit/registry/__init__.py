"""Saved versions of models, their aliases, and the ledger of decisions."""
