"""Random numbers: points, seeds, and functions cut where randomness enters."""
