"""Embeddings of images, regions, text and concepts from any CLIP."""
