"""The loop, evaluation, checkpoints: a reader sees the loop whole."""
