"""Search the embeddings of a folder for what words say, or for what looks like an image.

    python examples/search.py --model outputs/train/final --embeds outputs/embed_folder \
        --query "a ship at a pier" "a storage tank" --top_k 5
    python examples/search.py --model outputs/train/final --embeds outputs/embed_folder --kind region \
        --query "an airplane" --image example.png --images tiles/

Takes seconds; the first time it builds the index, `image.faiss` or `region.faiss` beside the shards of
`examples/embed_folder.py`. Prints path, box, concept and cosine of the best; with `--images` it also draws
them, `hits_<number>.png`. Needs faiss: pip install "geoalign_hf[search]".
"""

import argparse
from pathlib import Path

import faiss
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModel, AutoProcessor
from transformers.image_utils import load_image

from geoalign_hf import Embedder
from geoalign_hf.dataset_builder.contact_sheet import draw_contact_sheet
from geoalign_hf.embedding.shards import check_model, read_description, read_embeds


def add_index(dataset: Dataset, path: Path, newest: float) -> None:
    """Load the index, or build and save one where there is none or shards are newer."""
    if path.exists() and path.stat().st_mtime >= newest:
        dataset.load_faiss_index("embed", path)
    else:
        dataset.add_faiss_index("embed", metric_type=faiss.METRIC_INNER_PRODUCT)
        dataset.save_faiss_index("embed", path)


def main() -> None:
    """Load, index, search, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub repository that made the embeddings")
    parser.add_argument("--embeds", type=Path, required=True, help="output_dir of examples/embed_folder.py")
    parser.add_argument("--kind", default="image", choices=["image", "region"], help="what to search")
    parser.add_argument("--query", nargs="+", default=[], help="texts")
    parser.add_argument("--image", nargs="+", default=[], help="files that hits shall look like")
    parser.add_argument("--top_k", type=int, default=5)
    parser.add_argument("--images", type=Path, help="folder that was embedded, to draw the hits")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/search"))
    arguments = parser.parse_args()
    if not arguments.query and not arguments.image:
        parser.error("give --query, --image or both")

    # 1. The model, which must be the one that made the embeddings, and what it makes of the queries.
    model = AutoModel.from_pretrained(arguments.model).to(PartialState().device)
    check_model(arguments.embeds, model)
    image_size = read_description(arguments.embeds)["protocol"]["image_size"]
    embedder = Embedder(model, AutoProcessor.from_pretrained(arguments.model), image_size)
    names = [*arguments.query, *arguments.image]
    embeds = [*embedder.embed_text(arguments.query), *embedder.embed_images(arguments.image)]

    # 2. The embeddings and their index: inner products of unit vectors are cosines.
    dataset = read_embeds(arguments.embeds)
    kinds = dataset["kind"]
    dataset = dataset.select([i for i, kind in enumerate(kinds) if kind == arguments.kind])
    if not len(dataset):
        raise ValueError(
            f"{arguments.embeds} holds no {arguments.kind}s. Embed some, or choose another --kind."
        )
    newest = max(path.stat().st_mtime for path in arguments.embeds.glob("*.parquet"))
    add_index(dataset, arguments.embeds / f"{arguments.kind}.faiss", newest)

    # 3. The best of each query, and a picture of them.
    for number, (name, embed) in enumerate(zip(names, embeds, strict=True)):
        scores, hits = dataset.get_nearest_examples(
            "embed", embed.numpy(), min(arguments.top_k, len(dataset))
        )
        print(f"{name}:")
        drawn = []
        for score, path, box, concept in zip(scores, hits["path"], hits["box"], hits["concept"], strict=True):
            words = " ".join(str(word) for word in (concept, f"{score:.4f}") if word)
            print(f"  {path} {[round(side, 1) for side in box] if box else 'whole'} {words}")
            if arguments.images:
                boxes, phrases = ([box], [words]) if box else ([], [])
                captions = [name, f"{score:.4f}"]
                row = {"image": load_image(str(arguments.images / path)), "boxes": boxes, "phrases": phrases}
                drawn.append(row | {"captions": captions, "source": path})
        if drawn:
            arguments.output_dir.mkdir(parents=True, exist_ok=True)
            draw_contact_sheet(drawn).save(arguments.output_dir / f"hits_{number}.png")


if __name__ == "__main__":
    main()
