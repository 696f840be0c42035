"""Builds a dataset of rows from annotated images."""
