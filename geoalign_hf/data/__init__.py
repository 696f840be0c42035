"""Rows: schema, loading, augmentation, tiling and collation."""
