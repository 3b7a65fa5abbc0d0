"""What training sees of the data, whatever it was made from: splits of rows and seeded loaders. Knows no columns."""
