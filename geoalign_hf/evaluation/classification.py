"""Evaluators that choose one of several concepts: for every region, or for every scene."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from ..captioning.grammar import spell_concept
from ..data.schema import list_concepts
from ..embedding.embedder import Embedder
from ..embedding.templates import check_texts, resolve_templates, split_concepts
from ..model.processing_geoalign_clip import CONCEPT_TEMPLATES
from .evaluator import Evaluator, RegionEvaluator
from .metrics.classification import count_confusions, rank_concepts, score_concepts, score_regions


@dataclass(eq=False, repr=False)
class RegionClassificationEvaluator(RegionEvaluator):
    """Classify every ground-truth box among the concepts.

    The result holds the scores of `score_regions`, also by size of the box. `confusion` holds counts, with
    one row per correct concept and one column per answer, in the order of `protocol["concepts"]`.

    Args:
        rows: dataset of rows.
        concepts: names to choose from. None takes those that occur in the rows.
        templates: sentences with one `{}` for the concept, or the name of a template set.
        region_source: source of a region's embedding, see `RegionEvaluator`.
        context: side of windows and crops, see `RegionEvaluator`.
        views: several contexts, see `RegionEvaluator`.
        arrays_path: `.npz` file for the arrays behind the scores, see `Evaluator`.

    Raises:
        ValueError: also if a row has a concept that is not among `concepts`.
    """

    name, primary_metric = "regions", "top1_macro"
    task = "region classification from ground-truth boxes"

    concepts: Sequence[str] | None = None
    templates: str | Sequence[str] = CONCEPT_TEMPLATES

    def __post_init__(self):
        super().__post_init__()
        occurring = list_concepts(self.rows)
        self.choices = occurring if self.concepts is None else split_concepts(self.concepts)
        self.templates = resolve_templates(self.templates)
        _check_known("the rows hold", occurring, self.choices)

    def _evaluate(self, embedder: Embedder) -> tuple[dict, dict]:
        concept_embeds = embedder.embed_concepts(self.choices, self.templates)
        region_embeds = self._embed_regions(embedder)
        names = [name for of_row in self.rows["concepts"] for name in of_row]
        references = np.array([self.choices.index(name) for name in names], dtype=int)
        boxes = [box for of_row in self.rows["boxes"] for box in of_row]
        areas = np.array([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes])
        self._save(regions=region_embeds, concepts=concept_embeds, references=references, areas=areas)
        predictions = rank_concepts((region_embeds @ concept_embeds.T).numpy())
        scores = score_regions(predictions, references, self.choices, areas)
        scores["confusion"] = count_confusions(predictions, references, len(self.choices)).tolist()
        protocol = self._describe_regions(embedder)
        return scores, protocol | {"templates": list(self.templates), "concepts": self.choices}


@dataclass(eq=False, repr=False)
class SceneClassificationEvaluator(Evaluator):
    """Classify every image among the concepts, without training on them.

    The result holds the scores of `score_concepts`, and `confusion` as in `RegionClassificationEvaluator`.

    Args:
        images: PIL images or paths; a column of a dataset also works.
        names: name of the concept of each image, as the data set writes it.
        concepts: names to choose from. None takes those that occur.
        templates: sentences with one `{}` for the concept, or the name of a template set.
        renamed: other words for some of the names, such as `{"Parking": "parking lot"}`. All other names are
            spelled by `spell_concept`.
        arrays_path: `.npz` file for the arrays behind the scores, see `Evaluator`.

    Raises:
        ValueError: if there are no images, images and names differ in number, or a name is not among
            `concepts`.
    """

    name, primary_metric = "scenes", "top1_micro"
    task = "zero-shot scene classification"

    images: Sequence
    names: Sequence[str]
    concepts: Sequence[str] | None = None
    templates: str | Sequence[str] = CONCEPT_TEMPLATES
    _: KW_ONLY
    renamed: dict[str, str] | None = None

    def __post_init__(self):
        if len(self.images) != len(self.names):
            raise ValueError(
                f"Expected one name per image; found {len(self.images)} images and {len(self.names)} names."
            )
        if len(self.images) == 0:
            raise ValueError("Expected at least one image; found none.")
        check_texts(self.names, "names")
        occurring = sorted(set(self.names))
        self.choices = occurring if self.concepts is None else split_concepts(self.concepts)
        self.templates = resolve_templates(self.templates)
        _check_known("the images have", occurring, self.choices)

    def _evaluate(self, embedder: Embedder) -> tuple[dict, dict]:
        renamed = self.renamed or {}
        words = [renamed.get(name, spell_concept(name)) for name in self.choices]
        concept_embeds = embedder.embed_concepts(words, self.templates)
        image_embeds = embedder.embed_images(self.images, "scenes")
        references = np.array([self.choices.index(name) for name in self.names], dtype=int)
        self._save(images=image_embeds, concepts=concept_embeds, references=references)
        predictions = rank_concepts((image_embeds @ concept_embeds.T).numpy())
        scores = score_concepts(predictions, references, words)
        scores["confusion"] = count_confusions(predictions, references, len(words)).tolist()
        spelled = {name: word for name, word in zip(self.choices, words, strict=True) if name != word}
        return scores, {"templates": list(self.templates), "concepts": words, "renamed": spelled}


def _check_known(subject: str, occurring: list[str], concepts: Sequence[str]) -> None:
    if unknown := sorted(set(occurring) - set(concepts)):
        raise ValueError(
            f"{subject} the concepts {unknown}, which are not among {list(concepts)}. "
            "Add them to concepts, or remove what has them."
        )
