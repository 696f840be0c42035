r"""Adapts a model to new concepts from a few boxes each, and measures the cost on the old concepts.

    python examples/train.py --dataset train.json --images images/ --exclude_concepts ship --output_dir base
    python examples/adapt.py --model base/final --coco train.json --test_coco test.json \
        --images images/ --concepts ship --shots 1,4,16

Zero-shot, prototypes without and with the names, a ridge probe and LoRA are compared on the same boxes,
which are drawn from `--coco`. Without `--test_coco`, a quarter of the images is the test set. Prints the mean
± standard deviation of accuracies: `new` (boxes and names of new concepts), `all`, `old`, `kept` (boxes of
old concepts, all names). Writes `metrics.json`, and the adapter of the most boxes and seed 0 as `final/`.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from accelerate import PartialState
from datasets import concatenate_datasets
from transformers import AutoModel, AutoProcessor, HfArgumentParser
from transformers.hf_argparser import HfArg

import geoalign_hf  # noqa: F401  (registers the classes)
from geoalign_hf.data.loading import from_coco
from geoalign_hf.data.schema import list_concepts
from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.evaluation.results import write_metrics
from geoalign_hf.hub.cards import describe_dataset, write_card
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.training.few_shot import (
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
from geoalign_hf.training.lora import AdapterConfig


@dataclass
class ScriptArguments:
    """The base model and the data."""

    model: str = HfArg(help="Folder or Hub repository of the base model.")
    coco: str = HfArg(help="COCO file with boxes of the new concepts, and possibly of others.")
    images: str = HfArg(help="Folder of the images.")
    test_coco: str | None = HfArg(default=None, help="COCO file of the test boxes.")
    concepts: list[str] | None = HfArg(
        default=None, help="Names of the new concepts. The default is all of --coco that are not old."
    )
    old_concepts: list[str] | None = HfArg(
        default=None, help="Names of the old concepts. The default is all of --coco that are not new."
    )
    output_dir: str = HfArg(default="outputs/adapt", help="Folder for the adapter and metrics.json.")


def main() -> None:
    """Draw boxes, adapt the model, score it and save the adapter."""
    parser = HfArgumentParser((ScriptArguments, FewShotConfig, AdapterConfig))
    parser.set_defaults(lora="text")  # without old boxes, adapters on the vision tower forget more
    arguments, config, adapters = parser.parse_args_into_dataclasses()
    output_dir = Path(arguments.output_dir)

    # 1. Training rows, test rows, new and old concepts.
    rows = from_coco(arguments.coco, arguments.images)
    new, old = split_concepts(list_concepts(rows), arguments.concepts, arguments.old_concepts)
    if arguments.test_coco:
        test_rows = from_coco(arguments.test_coco, arguments.images)
    else:
        rows, test_rows = split_rows(rows)
    pairs = product(config.list_shots(), range(config.num_seeds))
    drawn = {(shots, seed): draw_shots(rows, new, shots, seed) for shots, seed in pairs}
    names = [*new, *old]
    test_names = [name for of_row in test_rows["concepts"] for name in of_row]
    is_tested = np.array([name in names for name in test_names])
    references = np.array([names.index(name) for name in test_names if name in names])

    # 2. The base model's embeddings of all names and of the test boxes.
    processor = AutoProcessor.from_pretrained(arguments.model)

    def load():
        return AutoModel.from_pretrained(arguments.model).to(PartialState().device)

    def score(classifier: np.ndarray, embeds: np.ndarray) -> dict:
        return score_few_shot(embeds @ classifier.T, references, names, len(new))

    base = Embedder(load(), processor)
    texts = base.embed_concepts(names, CONCEPT_TEMPLATES).numpy()
    old_texts = texts[len(new) :]
    test_embeds = base.embed_regions(test_rows).numpy()[is_tested]
    results = {"zero-shot": [score(texts, test_embeds)]}

    # 3. The methods. In closed form, old concepts are represented by their texts.
    about = {"script": asdict(arguments), "few_shot": asdict(config), "adapters": asdict(adapters)}
    about |= {"data": describe_dataset(arguments.coco)}
    for (shots, seed), boxes in drawn.items():
        embeds, targets = base.embed_regions(boxes).numpy(), np.repeat(np.arange(len(names)), shots)
        prototypes = make_prototypes(embeds, targets[: len(embeds)])
        named = blend_with_texts(prototypes, texts[: len(new)])
        known = np.concatenate([embeds, np.repeat(old_texts, shots, axis=0)])
        if config.rehearsed:
            boxes = concatenate_datasets([boxes, draw_shots(rows, old, config.rehearsed, seed)])
        folder = output_dir / "lora" / f"{shots}_shots_seed_{seed}"
        model = adapt_by_lora(load(), processor, boxes, names, config, adapters, folder, seed, about)
        adapted = Embedder(model, processor)
        for method, classifier, tested in (
            ("prototypes", np.concatenate([prototypes, old_texts]), test_embeds),
            ("prototypes and names", np.concatenate([named, old_texts]), test_embeds),
            ("ridge probe", fit_ridge(known, targets, config.ridge * shots), test_embeds),
            (
                "LoRA",
                adapted.embed_concepts(names, CONCEPT_TEMPLATES).numpy(),
                adapted.embed_regions(test_rows).numpy()[is_tested],
            ),
        ):
            results.setdefault(f"{method}, {shots}-shot", []).append(score(classifier, tested))

    # 4. The table, metrics.json and the adapter.
    protocol = {
        "task": "few-shot region classification from ground-truth boxes",
        "test": arguments.test_coco or "a random quarter of the images",
        "new": ", ".join(new),
        "old": ", ".join(old),
        "seeds": config.num_seeds,
        "templates": list(CONCEPT_TEMPLATES),
        "num_new_and_old_regions": np.bincount(references >= len(new), minlength=2).tolist(),
    } | {name: value for name, value in base.describe().items() if name != "seed"}
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


if __name__ == "__main__":
    main()
