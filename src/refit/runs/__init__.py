"""What a run depends on, what it has left behind, and what nothing needs any more."""
