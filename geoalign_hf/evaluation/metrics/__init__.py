"""Metrics: pure functions on arrays, and the same as `evaluate.Metric`s."""
