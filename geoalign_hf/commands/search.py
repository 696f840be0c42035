"""`geoalign-hf search`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from datasets import Dataset

from ..dataset_builder.contact_sheet import draw_contact_sheet
from ..embedding.embedder import Embedder
from ..embedding.shards import check_model, read_description, read_embeds
from ..images import ImageOptions
from ..options import option
from .embed import EMBEDS
from .inputs import MODEL, check_search, load_model


@dataclass
class SearchOptions:
    """What is searched for, and where."""

    _positional = ("query",)

    query: list[str] = option(default_factory=list, help="Texts to search for.")
    image: list[str] = option(default_factory=list, help="Image files to find similar results for.")
    embeds: str = option(default=EMBEDS, help="Folder that geoalign-hf embed has written.")
    model: str = option(default=MODEL, help="Folder or Hub repository of the model that made the embeddings.")
    kind: Literal["image", "region"] = option(
        default="image", help="Kind of the results: whole images or boxes."
    )
    top_k: int = option(default=5, help="Number of results per query.")
    images: str | None = option(
        default=None, help="Folder of the embedded images. With it, the results are drawn."
    )
    output_dir: str = option(default="outputs/search", help="Folder of the drawn results, hits_<number>.png.")


def search(options: SearchOptions, image_options: ImageOptions) -> Path | None:
    """Search embedded images by text or by example, with a FAISS index beside the embeddings.

    Example images are read with the options that the embedded images were read with, unless others are given.
    """
    check_search(options.query, options.image, options.top_k)
    folder = Path(options.embeds)
    model, processor = load_model(options.model)
    check_model(folder, model)
    protocol = read_description(folder)["protocol"]
    if image_options.describe() is None:
        image_options = replace(
            image_options, **{k: tuple(v) for k, v in (protocol.get("image_options") or {}).items()}
        )
    image_options = image_options.with_fallback(protocol.get("image_rule"))
    embedder = Embedder(model, processor, protocol["image_size"], image_options=image_options)
    embeds = [*embedder.embed_text(options.query), *embedder.embed_images(options.image)]

    dataset = load_index(folder, options.kind)
    for number, (name, embed) in enumerate(zip([*options.query, *options.image], embeds, strict=True)):
        scores, columns = dataset.get_nearest_examples(
            "embed", embed.numpy(), min(options.top_k, len(dataset))
        )
        hits = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        print(f"{name}:")
        for score, hit in zip(scores, hits, strict=True):
            hit["words"] = " ".join(filter(None, (hit["concept"], f"{score:.4f}")))
            box = [round(side, 1) for side in hit["box"]] if hit["box"] else "whole"
            print(f"  {hit['path']} {box} {hit['words']}")
        if options.images:
            rows = [
                {
                    "image": embedder.read_image(Path(options.images, hit["path"])),
                    "boxes": [hit["box"]] if hit["box"] else [],
                    "phrases": [hit["words"]] if hit["box"] else [],
                    "captions": [name, f"{score:.4f}"],
                    "source": hit["path"],
                }
                for score, hit in zip(scores, hits, strict=True)
            ]
            Path(options.output_dir).mkdir(parents=True, exist_ok=True)
            draw_contact_sheet(rows).save(Path(options.output_dir, f"hits_{number}.png"))
    return Path(options.output_dir) if options.images else None


def load_index(folder: Path, kind: str) -> Dataset:
    """Load the embeddings of one kind with their index, which is built again if shards are newer.

    Raises:
        ValueError: If the folder holds no embeddings of this kind.
    """
    import faiss  # optional

    dataset = read_embeds(folder)
    dataset = dataset.select([i for i, name in enumerate(dataset["kind"]) if name == kind])
    if not len(dataset):
        raise ValueError(
            f"{folder} holds no embeddings of kind {kind!r}. Embed some, or give another --kind."
        )
    path = folder / f"{kind}.faiss"
    if path.exists() and path.stat().st_mtime >= max(
        shard.stat().st_mtime for shard in folder.glob("*.parquet")
    ):
        dataset.load_faiss_index("embed", path)
    else:  # inner products of unit vectors are cosines
        dataset.add_faiss_index("embed", metric_type=faiss.METRIC_INNER_PRODUCT)
        dataset.save_faiss_index("embed", path)
    return dataset
