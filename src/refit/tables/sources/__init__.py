"""Where tables come from: one class a kind of source, and the readers of files."""
