"""The store: objects by their digest, and files that are written atomically."""
