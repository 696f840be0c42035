"""Annotations to a published dataset of rows."""
