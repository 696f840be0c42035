"""GeoAlignCLIP for the Hugging Face stack: a CLIP for overhead images, their regions and their concepts.

Importing the package registers the model, its processor and its pipeline with transformers. Everything
else is imported on first use, so that `import geoalign_hf` takes no longer than importing the model. With the
environment variable GEOALIGN_HF_REGISTER=0 nothing is registered, and neither torch nor transformers is
imported: `geoalign-hf build` sets it for itself and its processes.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .convert.convert import convert_clip
    from .data.augmentation import Augmentation
    from .data.collator import RowCollator
    from .data.loading import from_coco, load_rows
    from .data.schema import build_rows
    from .embedding.concept_bank import ConceptBank
    from .embedding.embedder import Embedder
    from .evaluation.choice import StatementChoiceEvaluator
    from .evaluation.classification import RegionClassificationEvaluator, SceneClassificationEvaluator
    from .evaluation.detection import DetectionEvaluator
    from .evaluation.drift import EmbeddingDriftEvaluator
    from .evaluation.evaluator import Evaluator
    from .evaluation.hard_negatives import HardNegativeEvaluator
    from .evaluation.localization import LocalizationEvaluator
    from .evaluation.retrieval import CaptionRetrievalEvaluator, PhraseRetrievalEvaluator
    from .hub.push import push
    from .losses.objective import PRESETS, LossWeights, compute_losses
    from .model.configuration_geoalign_clip import GeoAlignCLIPConfig
    from .model.detection_pipeline_geoalign_clip import GeoAlignCLIPDetectionPipeline
    from .model.modeling_geoalign_clip import GeoAlignCLIPModel, GeoAlignCLIPOutput
    from .model.pipeline_geoalign_clip import ZeroShotRegionClassificationPipeline
    from .model.processing_geoalign_clip import GeoAlignCLIPProcessor
    from .training.arguments import GeoAlignTrainingArguments
    from .training.trainer import GeoAlignTrainer

# Public names that are imported on first use, and the module of each. The block above says the same to type
# checkers; tests/test_architecture.py compares the two.
_LAZY = {
    "Augmentation": "data.augmentation",
    "CaptionRetrievalEvaluator": "evaluation.retrieval",
    "ConceptBank": "embedding.concept_bank",
    "DetectionEvaluator": "evaluation.detection",
    "Embedder": "embedding.embedder",
    "EmbeddingDriftEvaluator": "evaluation.drift",
    "Evaluator": "evaluation.evaluator",
    "GeoAlignCLIPConfig": "model.configuration_geoalign_clip",
    "GeoAlignCLIPDetectionPipeline": "model.detection_pipeline_geoalign_clip",
    "GeoAlignCLIPModel": "model.modeling_geoalign_clip",
    "GeoAlignCLIPOutput": "model.modeling_geoalign_clip",
    "GeoAlignCLIPProcessor": "model.processing_geoalign_clip",
    "GeoAlignTrainer": "training.trainer",
    "GeoAlignTrainingArguments": "training.arguments",
    "HardNegativeEvaluator": "evaluation.hard_negatives",
    "LocalizationEvaluator": "evaluation.localization",
    "LossWeights": "losses.objective",
    "PRESETS": "losses.objective",
    "PhraseRetrievalEvaluator": "evaluation.retrieval",
    "RegionClassificationEvaluator": "evaluation.classification",
    "RowCollator": "data.collator",
    "SceneClassificationEvaluator": "evaluation.classification",
    "StatementChoiceEvaluator": "evaluation.choice",
    "ZeroShotRegionClassificationPipeline": "model.pipeline_geoalign_clip",
    "build_rows": "data.schema",
    "compute_losses": "losses.objective",
    "convert_clip": "convert.convert",
    "from_coco": "data.loading",
    "load_rows": "data.loading",
    "push": "hub.push",
}

__all__ = [
    "PRESETS",
    "Augmentation",
    "CaptionRetrievalEvaluator",
    "ConceptBank",
    "DetectionEvaluator",
    "Embedder",
    "EmbeddingDriftEvaluator",
    "Evaluator",
    "GeoAlignCLIPConfig",
    "GeoAlignCLIPDetectionPipeline",
    "GeoAlignCLIPModel",
    "GeoAlignCLIPOutput",
    "GeoAlignCLIPProcessor",
    "GeoAlignTrainer",
    "GeoAlignTrainingArguments",
    "HardNegativeEvaluator",
    "LocalizationEvaluator",
    "LossWeights",
    "PhraseRetrievalEvaluator",
    "RegionClassificationEvaluator",
    "RowCollator",
    "SceneClassificationEvaluator",
    "StatementChoiceEvaluator",
    "ZeroShotRegionClassificationPipeline",
    "__version__",
    "build_rows",
    "compute_losses",
    "convert_clip",
    "from_coco",
    "load_rows",
    "push",
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if os.environ.get("GEOALIGN_HF_REGISTER") != "0":
    from .registration import register

    register()
