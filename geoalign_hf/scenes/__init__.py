"""Large georeferenced scenes: score maps, named regions and embeddings that keep their coordinates."""
