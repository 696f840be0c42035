"""Checkpoints of other CLIPs, and fresh models."""
