"""Saved models at work: score rows and files, export."""
