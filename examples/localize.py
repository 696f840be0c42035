"""Draw a map of where a phrase is true in a large picture.

    python examples/localize.py outputs/train/final harbor.tif "a ship at a pier" "a storage tank"

The picture is covered by tiles of three sizes, about 60 tiles per 1000 x 1000 pixels; each is embedded once
for all phrases. Writes `outputs/localize/map_<number>.png`. `geoalign-hf evaluate localization` also scores
maps against polygons.
"""

import sys
from pathlib import Path

from transformers import AutoModel, AutoProcessor

from geoalign_hf import Embedder
from geoalign_hf.embedding.score_maps import build_score_maps
from geoalign_hf.evaluation.figures import draw_score_map
from geoalign_hf.evaluation.metrics.localization import normalize_map
from geoalign_hf.images import read_image


def main(model: str, path: str, *phrases: str) -> None:
    """Map the cosine of every phrase over a picture."""
    embedder = Embedder(AutoModel.from_pretrained(model), AutoProcessor.from_pretrained(model), batch_size=32)
    image, stride = read_image(path), 4
    score_maps = build_score_maps(embedder, image, phrases, stride=stride)
    for number, (phrase, cosines) in enumerate(zip(phrases, score_maps, strict=True)):
        output = Path("outputs/localize") / f"map_{number}.png"
        draw_score_map(image, normalize_map(cosines, stride), phrase, output)
        print(f"{output}: {phrase}")


if __name__ == "__main__":
    main(*sys.argv[1:])
