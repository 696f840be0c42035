"""Metrics: pure functions on arrays. Fractions and accuracies are in [0, 1]."""
