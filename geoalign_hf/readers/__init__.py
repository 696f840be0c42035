"""Readers of annotation formats; one file per format."""
