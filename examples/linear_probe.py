r"""Compares a linear probe and k nearest neighbors (scikit-learn) with zero-shot classification.

    python examples/linear_probe.py --model outputs/train/final --folder AID/
    python examples/linear_probe.py --model outputs/train/final --coco train.json --images images/ \
        --test_coco test.json

`--folder` has a folder of images per concept. `--coco` has boxes, each of which is embedded as a region. The
test set is given, or is drawn at random: stratified by concept, with no image in both parts. Prints the
accuracy of the three methods on the same test set, and writes `metrics.json` with the protocol. It takes
about a minute per thousand images on a CPU. Needs scikit-learn: pip install "geoalign_hf[probe]".
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
    """Return embeddings (N, D), and the concept and the image of each."""
    if folder:
        paths = list_images(folder)
        if stray := [path for path in paths if path.parent == folder]:
            raise ValueError(
                f"{stray[0]} is not in the folder of a concept. Give a folder with one folder per concept."
            )
        names = [spell_concept(path.parent.name) for path in paths]
        return embedder.embed_images(paths).numpy(), np.array(names), np.array(list(map(str, paths)))
    rows = from_coco(coco, images)
    owners = [source for source, boxes in zip(rows["source"], rows["boxes"], strict=True) for _ in boxes]
    names = [concept for concepts in rows["concepts"] for concept in concepts]
    return embedder.embed_regions(rows, region_source).numpy(), np.array(names), np.array(owners)


def main() -> None:
    """Embed the data, split it, fit the classifiers and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Folder or Hub repository of the model.")
    parser.add_argument("--folder", type=Path, help="Folder with a folder of images per concept.")
    parser.add_argument("--test_folder", type=Path, help="Folder of the test set, of the same form.")
    parser.add_argument("--coco", type=Path, help="COCO file of boxes, instead of --folder.")
    parser.add_argument("--test_coco", type=Path, help="COCO file of the test boxes.")
    parser.add_argument("--images", type=Path, help="Folder of the images of both COCO files.")
    parser.add_argument(
        "--folds", type=int, default=4, help="Number of parts, one of which is the test set if none is given."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random split.")
    parser.add_argument("--num_neighbors", type=int, default=5, help="Number of neighbors that vote.")
    parser.add_argument(
        "--region_source", default="image", choices=REGION_SOURCES, help="Picture that a region is seen in."
    )
    parser.add_argument(
        "--templates",
        default="geoalign",
        choices=TEMPLATE_SETS,
        help="Templates of the zero-shot method.",
    )
    parser.add_argument("--image_size", type=int, help="Side of the images. The default is the model's.")
    parser.add_argument("--batch_size", type=int, default=16, help="Number of images per pass.")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/linear_probe"), help="Folder of metrics.json."
    )
    arguments = parser.parse_args()
    if bool(arguments.folder) == bool(arguments.coco and arguments.images):
        parser.error("give either --folder, or --coco and --images")
    if arguments.test_coco and not arguments.images:
        parser.error("--test_coco needs --images")

    # 1. Embeddings and their concepts.
    model = AutoModel.from_pretrained(arguments.model).to(PartialState().device)
    processor = AutoProcessor.from_pretrained(arguments.model)
    embedder = Embedder(model, processor, arguments.image_size, arguments.batch_size)
    shared = (arguments.images, arguments.region_source)
    train_embeds, train_names, owners = embed(embedder, arguments.folder, arguments.coco, *shared)

    # 2. The test set: given, or a part of the data.
    given = arguments.test_folder or arguments.test_coco
    if given:
        embeds, names, _ = embed(embedder, arguments.test_folder, arguments.test_coco, *shared)
    else:
        folds = StratifiedGroupKFold(arguments.folds, shuffle=True, random_state=arguments.seed)
        train, test = next(folds.split(train_embeds, train_names, owners))
        embeds, names = train_embeds[test], train_names[test]
        train_embeds, train_names = train_embeds[train], train_names[train]
    concepts = sorted({*train_names, *names})

    # 3. Three methods of classification.
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    neighbors = KNeighborsClassifier(arguments.num_neighbors, metric="cosine")
    concept_embeds = embedder.embed_concepts(concepts, TEMPLATE_SETS[arguments.templates]).numpy()
    answers = {
        "linear probe": probe.fit(train_embeds, train_names).predict(embeds),
        f"{arguments.num_neighbors} nearest neighbors": neighbors.fit(train_embeds, train_names).predict(
            embeds
        ),
        "zero-shot": np.array(concepts)[(embeds @ concept_embeds.T).argmax(axis=1)],
    }

    # 4. The table and metrics.json.
    protocol = {"num_train": len(train_names), "test": str(given or f"1 of {arguments.folds} parts")}
    protocol |= {"split_seed": None if given else arguments.seed, "templates": arguments.templates}
    protocol |= {"region_source": None if arguments.folder else arguments.region_source} | embedder.describe()
    references = np.searchsorted(concepts, names)
    metrics = {}
    for method, answer in answers.items():
        scores = score_concepts(np.searchsorted(concepts, answer), references, concepts, noun="tests")
        metrics[method] = scores | {"protocol": {"task": method} | protocol}
        print(f"{method:>22}: micro {scores['top1_micro']:.4f}, macro {scores['top1_macro']:.4f}")
    print(f"{len(train_names)} training and {len(names)} test samples of {len(concepts)} concepts")
    print(f"wrote {arguments.output_dir / 'metrics.json'}")
    write_metrics(arguments.output_dir / "metrics.json", metrics)


if __name__ == "__main__":
    main()
