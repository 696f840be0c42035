"""Embeddings into scikit-learn: a linear probe and k nearest neighbours, beside what words alone can do.

    python examples/linear_probe.py --model outputs/train/final --folder AID/
    python examples/linear_probe.py --model outputs/train/final --coco train.json --images images/ \
        --test_coco test.json

`--folder` holds a folder of images per concept; `--coco` has boxes, each of which is embedded as a region.
What is tested is given, or drawn by the seed: every concept in its share, no image on both sides. Takes about
a minute per thousand images on a CPU. Prints the accuracy of the three on the same test, with counts; writes
`metrics.json` with the protocol. Needs scikit-learn: pip install "geoalign_hf[probe]".
"""

import argparse
from pathlib import Path

import numpy as np
from accelerate import PartialState
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoProcessor

import geoalign_hf  # noqa: F401  (registers the classes)
from geoalign_hf.captioning.grammar import spell_concept
from geoalign_hf.data.loading import from_coco
from geoalign_hf.data.views import REGION_SOURCES
from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.embedding.templates import TEMPLATE_SETS
from geoalign_hf.evaluation.metrics.classification import score_concepts
from geoalign_hf.evaluation.results import write_metrics
from geoalign_hf.readers.files import list_images


def embed(
    embedder: Embedder, folder: Path | None, coco: Path | None, images: Path, region_source: str
) -> tuple:
    """Give embeddings (N, D), the concept of each, and the image that each is of."""
    if folder:
        paths = list_images(folder)
        if stray := [path for path in paths if path.parent == folder]:
            raise ValueError(
                f"{stray[0]} lies in no folder of a concept. Give a folder that holds one for each."
            )
        names = [spell_concept(path.parent.name) for path in paths]
        return embedder.embed_images(paths).numpy(), np.array(names), np.array(list(map(str, paths)))
    rows = from_coco(coco, images)
    owners = [source for source, boxes in zip(rows["source"], rows["boxes"], strict=True) for _ in boxes]
    names = [concept for concepts in rows["concepts"] for concept in concepts]
    return embedder.embed_regions(rows, region_source).numpy(), np.array(names), np.array(owners)


def main() -> None:
    """Embed, split, fit, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub repository")
    parser.add_argument("--folder", type=Path, help="holds a folder of images per concept")
    parser.add_argument("--test_folder", type=Path, help="likewise, to test on")
    parser.add_argument("--coco", type=Path, help="COCO file of boxes, in place of --folder")
    parser.add_argument("--test_coco", type=Path, help="likewise, to test on")
    parser.add_argument("--images", type=Path, help="folder of the images of both")
    parser.add_argument(
        "--folds", type=int, default=4, help="1 of so many parts is the test, if none is given"
    )
    parser.add_argument("--seed", type=int, default=0, help="of drawing it")
    parser.add_argument("--num_neighbors", type=int, default=5)
    parser.add_argument("--region_source", default="image", choices=REGION_SOURCES)
    parser.add_argument(
        "--templates", default="geoalign", choices=TEMPLATE_SETS, help="of the zero-shot answers"
    )
    parser.add_argument("--image_size", type=int, help="side of pixel_values; default: the model's own")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/linear_probe"))
    arguments = parser.parse_args()
    if bool(arguments.folder) == bool(arguments.coco and arguments.images):
        parser.error("give either --folder, or --coco and --images")
    if arguments.test_coco and not arguments.images:
        parser.error("--test_coco needs --images")

    # 1. Embeddings with their concepts.
    model = AutoModel.from_pretrained(arguments.model).to(PartialState().device)
    processor = AutoProcessor.from_pretrained(arguments.model)
    embedder = Embedder(model, processor, arguments.image_size, arguments.batch_size)
    shared = (arguments.images, arguments.region_source)
    train_embeds, train_names, owners = embed(embedder, arguments.folder, arguments.coco, *shared)

    # 2. The test: given, or some of them.
    given = arguments.test_folder or arguments.test_coco
    if given:
        embeds, names, _ = embed(embedder, arguments.test_folder, arguments.test_coco, *shared)
    else:
        folds = StratifiedGroupKFold(arguments.folds, shuffle=True, random_state=arguments.seed)
        train, test = next(folds.split(train_embeds, train_names, owners))
        embeds, names = train_embeds[test], train_names[test]
        train_embeds, train_names = train_embeds[train], train_names[train]
    concepts = sorted({*train_names, *names})

    # 3. Three ways to name what an embedding shows.
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    neighbors = KNeighborsClassifier(arguments.num_neighbors, metric="cosine")
    concept_embeds = embedder.embed_concepts(concepts, TEMPLATE_SETS[arguments.templates]).numpy()
    answers = {
        "linear probe": probe.fit(train_embeds, train_names).predict(embeds),
        f"{arguments.num_neighbors} nearest neighbours": neighbors.fit(train_embeds, train_names).predict(
            embeds
        ),
        "zero-shot": np.array(concepts)[(embeds @ concept_embeds.T).argmax(axis=1)],
    }

    # 4. One file, one table.
    protocol = {"num_train": len(train_names), "test": str(given or f"1 of {arguments.folds} parts")}
    protocol |= {"split_seed": None if given else arguments.seed, "templates": arguments.templates}
    protocol |= {"region_source": None if arguments.folder else arguments.region_source} | embedder.describe()
    references = np.searchsorted(concepts, names)
    metrics = {}
    for way, answer in answers.items():
        scores = score_concepts(np.searchsorted(concepts, answer), references, concepts, noun="tests")
        metrics[way] = scores | {"protocol": {"task": way} | protocol}
        print(f"{way:>22}: micro {scores['top1_micro']:.4f}, macro {scores['top1_macro']:.4f}")
    print(f"{len(train_names)} to learn from, {len(names)} to test on, {len(concepts)} concepts")
    write_metrics(arguments.output_dir / "metrics.json", metrics)


if __name__ == "__main__":
    main()
