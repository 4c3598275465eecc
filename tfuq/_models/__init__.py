"""Keras models: what they take and give, and how they change for a while."""
