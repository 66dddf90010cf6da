"""Phone numbers: parsing, and the lists that they come in."""
