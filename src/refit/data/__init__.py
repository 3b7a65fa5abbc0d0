"""What a training sees, whatever it was made from: splits of rows and seeded loaders. Knows no columns."""
