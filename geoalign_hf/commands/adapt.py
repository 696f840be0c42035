"""`geoalign-hf adapt`."""

import json
import shutil
from argparse import Namespace
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from transformers import ProcessorMixin

from ..data.schema import list_concepts
from ..embedding.checkpoints import load_model, load_processor
from ..embedding.embedder import Embedder
from ..evaluation.results import write_metrics
from ..hub.cards import describe_dataset, write_card
from ..images import ImageOptions
from ..model.processing_geoalign_clip import CONCEPT_TEMPLATES
from ..options import option
from ..training.few_shot import (
    FewShotConfig,
    adapt_by_lora,
    blend_with_texts,
    draw_shots,
    fit_ridge,
    make_prototypes,
    score_few_shot,
    split_concepts,
    split_rows,
    summarize_seeds,
    write_table,
)
from ..training.lora import AdapterConfig
from .inputs import MODEL, ROWS, check_is_geoalign, check_model_exists, load_rows

RESULTS = ("lora", "final", "metrics.json")  # what an adaptation leaves in its folder


@dataclass
class AdaptOptions:
    """The base model and the data."""

    model: str = option(default=MODEL, help="Folder or Hub repository of the base model.")
    dataset: str = option(
        default=ROWS,
        help="Folder or Hub repository of rows with boxes of the new concepts, or a COCO .json file "
        "(with --images).",
    )
    test_dataset: str | None = option(
        default=None,
        help="Rows or COCO file of the test boxes. By default, a random quarter of --dataset.",
    )
    images: str | None = option(default=None, help="Folder of the images of COCO files.")
    concepts: list[str] | None = option(
        default=None, help="Names of the new concepts. By default, all of --dataset that are not old."
    )
    old_concepts: list[str] | None = option(
        default=None, help="Names of the old concepts. By default, all of --dataset that are not new."
    )
    output_dir: str = option(
        default="outputs/adapt", help="Folder of metrics.json and, in final/, of the adapter."
    )
    overwrite_output_dir: bool = option(
        default=False, help="Removal of the results of an earlier adaptation from --output_dir."
    )

    @staticmethod
    def _defaults(namespace: Namespace) -> dict:
        return {"lora": "text"}  # without old boxes, adapters on the vision tower forget more


def adapt(
    options: AdaptOptions, config: FewShotConfig, adapters: AdapterConfig, image_options: ImageOptions
) -> Path:
    """Adapt a model to new concepts from a few boxes of each, and measure what it forgets.

    The names alone (zero-shot), prototypes, a ridge probe and LoRA are compared on the same boxes. The table
    has means and standard deviations over seeds: new boxes among new names, all boxes among all names, old
    boxes among old names, and old boxes among all names (kept).
    """
    check_model_exists(options.model)
    output_dir = Path(options.output_dir)
    earlier = [path for name in RESULTS if (path := output_dir / name).exists()]
    if earlier and not options.overwrite_output_dir:
        raise ValueError(
            f"--output_dir {output_dir} holds {earlier[0].name} of an earlier adaptation. Give another "
            "folder, or remove it with --overwrite_output_dir."
        )
    if any(Path(options.model).resolve().is_relative_to(path.resolve()) for path in earlier):
        raise ValueError(f"--output_dir {output_dir} holds --model {options.model}. Give another folder.")

    # 1. Training rows, test rows, new and old concepts.
    processor = load_processor(options.model)
    check_is_geoalign(processor, options.model)
    data = describe_dataset(options.dataset)
    image_options = image_options.with_fallback(data["image_rule"] or processor.image_rule)
    processor.image_rule = image_options.make_rule()
    rows = load_rows(options.dataset, options.images, None, "train", image_options)
    new, old = split_concepts(list_concepts(rows), options.concepts, options.old_concepts)
    if options.test_dataset:
        test_rows = load_rows(options.test_dataset, options.images, None, "test", image_options)
    else:
        rows, test_rows = split_rows(rows)
    # Too few boxes are an error before anything is computed or removed.
    draw_shots(rows, new, config.list_shots()[-1], seed=0)
    if config.rehearsed:
        draw_shots(rows, old, config.rehearsed, seed=0)
    study = FewShotStudy(options.model, processor, test_rows, new, old)
    about = {"script": asdict(options), "few_shot": asdict(config), "adapters": asdict(adapters)}
    about |= {"data": data}

    # 2. Every method on every draw of boxes.
    for path in earlier if PartialState().is_main_process else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    results = {"zero-shot": [study.score(study.texts, study.test_embeds)]}
    for shots, seed in product(config.list_shots(), range(config.num_seeds)):
        boxes = draw_shots(rows, new, shots, seed)
        for method, scores in study.score_closed_form(boxes, shots, config.ridge):
            results.setdefault(f"{method}, {shots}-shot", []).append(scores)
        if config.rehearsed:
            boxes = concatenate_datasets([boxes, draw_shots(rows, old, config.rehearsed, seed)])
        folder = output_dir / "lora" / f"{shots}_shots_seed_{seed}"
        model = adapt_by_lora(
            study.load(), study.processor, boxes, study.names, config, adapters, folder, seed, about
        )
        results.setdefault(f"LoRA, {shots}-shot", []).append(study.score_model(model))

    # 3. The table, metrics.json and the adapter.
    protocol = study.describe() | {
        "test": options.test_dataset or "a random quarter of the images",
        "seeds": config.num_seeds,
    }
    metrics = {title: summarize_seeds(found) | {"protocol": protocol} for title, found in results.items()}
    print(write_table(metrics))
    write_metrics(output_dir / "metrics.json", metrics)
    most, final = config.list_shots()[-1], output_dir / "final"
    shutil.copytree(output_dir / "lora" / f"{most}_shots_seed_0" / "final", final, dirs_exist_ok=True)
    title = f"LoRA, {most}-shot"
    shown = {"this adapter": results[title][0] | {"protocol": protocol | {"seeds": 1, "shots": most}}}
    shown |= {name: metrics[name] for name in (title, "zero-shot")}  # the mean, and the base model
    write_card(final, shown, json.loads((final / "args.json").read_text()))
    print(f"{final}: the adapter of {most} shots and seed 0")
    return output_dir


class FewShotStudy:
    """A base model, test boxes, and the scores of classifiers on them.

    Args:
        model: Folder or Hub repository of the base model.
        processor: Processor of the base model.
        test_rows: Rows with the test boxes. Boxes of other concepts are not used.
        new: Names of the new concepts.
        old: Names of the old concepts.
    """

    def __init__(
        self, model: str, processor: ProcessorMixin, test_rows: Dataset, new: list[str], old: list[str]
    ):
        self.model, self.test_rows, self.new, self.old = model, test_rows, new, old
        self.names = [*new, *old]
        test_names = [name for of_row in test_rows["concepts"] for name in of_row]
        self.is_tested = np.array([name in self.names for name in test_names])
        self.references = np.array([self.names.index(name) for name in test_names if name in self.names])
        self.processor = processor
        self.base = Embedder(self.load(), self.processor)
        self.texts, self.test_embeds = self.embed(self.base)

    def load(self):
        """Load the base model onto the device of this process."""
        return load_model(self.model).to(PartialState().device)

    def embed(self, embedder: Embedder) -> tuple[np.ndarray, np.ndarray]:
        """Embed the names (C, D) and the test boxes (N, D)."""
        texts = embedder.embed_concepts(self.names, CONCEPT_TEMPLATES).numpy()
        return texts, embedder.embed_regions(self.test_rows).numpy()[self.is_tested]

    def score(self, classifier: np.ndarray, embeds: np.ndarray) -> dict:
        """Score a classifier (C, D) on embedded test boxes (N, D)."""
        return score_few_shot(embeds @ classifier.T, self.references, self.names, len(self.new))

    def score_model(self, model) -> dict:
        """Score an adapted model by its own embeddings of names and boxes."""
        return self.score(*self.embed(Embedder(model, self.processor)))

    def score_closed_form(self, boxes: Dataset, shots: int, ridge: float) -> list[tuple[str, dict]]:
        """Score prototypes and a ridge probe of the base model, where texts represent the old concepts."""
        num_new = len(self.new)
        embeds, targets = self.base.embed_regions(boxes).numpy(), np.repeat(np.arange(len(self.names)), shots)
        prototypes = make_prototypes(embeds, targets[: len(embeds)])
        named = blend_with_texts(prototypes, self.texts[:num_new])
        known = np.concatenate([embeds, np.repeat(self.texts[num_new:], shots, axis=0)])
        classifiers = {
            "prototypes": np.concatenate([prototypes, self.texts[num_new:]]),
            "prototypes and names": np.concatenate([named, self.texts[num_new:]]),
            "ridge probe": fit_ridge(known, targets, ridge * shots),
        }
        return [(name, self.score(value, self.test_embeds)) for name, value in classifiers.items()]

    def describe(self) -> dict:
        """Return the protocol of the scores."""
        counts = np.bincount(self.references >= len(self.new), minlength=2).tolist()
        return {
            "task": "few-shot region classification from ground-truth boxes",
            "new": ", ".join(self.new),
            "old": ", ".join(self.old),
            "templates": list(CONCEPT_TEMPLATES),
            "num_new_and_old_regions": counts,
        } | {name: value for name, value in self.base.describe().items() if name != "seed"}
