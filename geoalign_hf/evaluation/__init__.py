"""Evaluators: scores together with their protocol."""
