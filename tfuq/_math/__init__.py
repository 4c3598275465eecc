"""Formulas that several packages share; no model, no file."""
