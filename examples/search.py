"""Search a folder of images by text.

    python examples/search.py outputs/train/final tiles/ "a ship at a pier"

Embeddings are unit vectors, so their inner products are cosines. `geoalign-hf embed` and `geoalign-hf search`
do the same for archives that do not fit in memory, and for boxes.
"""

import sys
from pathlib import Path

from transformers import AutoModel, AutoProcessor

from geoalign_hf import Embedder


def main(model: str, folder: str, *queries: str) -> None:
    """Embed images and texts, and print the five best images of each text."""
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix in (".png", ".jpg", ".tif"))
    embedder = Embedder(AutoModel.from_pretrained(model), AutoProcessor.from_pretrained(model))
    cosines = embedder.embed_text(queries) @ embedder.embed_images(paths).T  # (queries, images)
    for query, row in zip(queries, cosines, strict=True):
        print(f"{query}:")
        for cosine, i in zip(*row.topk(min(5, len(paths))), strict=True):
            print(f"  {paths[i]} {cosine:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
