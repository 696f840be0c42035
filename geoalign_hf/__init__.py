"""GeoAlignCLIP for the Hugging Face stack: a CLIP for overhead images, their regions and their concepts.

Importing the package registers the model, its processor and its pipeline with transformers. Everything
else is imported on first use, so that `import geoalign_hf` takes no longer than importing the model.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPTokenizer,
)
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import is_torchvision_available

from .detection.registration import ZeroShotObjectDetection
from .model.configuration_geoalign_clip import GeoAlignCLIPConfig
from .model.detection_pipeline_geoalign_clip import GeoAlignCLIPDetectionPipeline
from .model.modeling_geoalign_clip import GeoAlignCLIPModel, GeoAlignCLIPOutput
from .model.pipeline_geoalign_clip import ZeroShotRegionClassificationPipeline
from .model.processing_geoalign_clip import GeoAlignCLIPProcessor

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
    from .evaluation.drift import EmbeddingDriftEvaluator
    from .evaluation.evaluator import Evaluator
    from .evaluation.hard_negatives import HardNegativeEvaluator
    from .evaluation.localization import LocalizationEvaluator
    from .evaluation.retrieval import CaptionRetrievalEvaluator, PhraseRetrievalEvaluator
    from .hub.push import push
    from .losses.objective import PRESETS, LossWeights, compute_losses
    from .training.arguments import GeoAlignTrainingArguments
    from .training.trainer import GeoAlignTrainer

# Public names that are imported on first use, and the module of each. The block above says the same to type
# checkers; tests/test_architecture.py compares the two.
_LAZY = {
    "Augmentation": "data.augmentation",
    "CaptionRetrievalEvaluator": "evaluation.retrieval",
    "ConceptBank": "embedding.concept_bank",
    "Embedder": "embedding.embedder",
    "EmbeddingDriftEvaluator": "evaluation.drift",
    "Evaluator": "evaluation.evaluator",
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


def _register() -> None:
    """Register our classes with the Auto classes and the pipelines of transformers."""
    image_processors = {"pil": CLIPImageProcessorPil}
    if is_torchvision_available():
        image_processors["torchvision"] = transformers.CLIPImageProcessor
    config, model = GeoAlignCLIPConfig, GeoAlignCLIPModel
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(config, model, exist_ok=True)
    AutoModelForZeroShotObjectDetection.register(config, model, exist_ok=True)
    AutoProcessor.register(config, GeoAlignCLIPProcessor, exist_ok=True)
    AutoImageProcessor.register(config, image_processor_classes=image_processors, exist_ok=True)
    AutoTokenizer.register(config, tokenizer_class=CLIPTokenizer, exist_ok=True)
    pipeline = ZeroShotRegionClassificationPipeline
    PIPELINE_REGISTRY.register_pipeline(
        pipeline.task_name, pipeline, pt_model=(AutoModel,), type="multimodal"
    )
    # This task exists already; models of other kinds still get the pipeline of transformers.
    task = PIPELINE_REGISTRY.supported_tasks[GeoAlignCLIPDetectionPipeline.task_name]
    task["impl"] = ZeroShotObjectDetection


_register()
