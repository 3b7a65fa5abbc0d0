"""One maker of examples: the items of the user's own data sets."""
