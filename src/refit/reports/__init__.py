"""Reports for people: pictures, Markdown and HTML."""
