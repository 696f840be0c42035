"""Text from boxes: phrases, captions, descriptions and hard negatives."""
