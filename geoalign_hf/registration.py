"""Registers the model, its processor and its pipelines with transformers."""

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

from .detection.registration import ZeroShotObjectDetection
from .model.configuration_geoalign_clip import GeoAlignCLIPConfig
from .model.detection_pipeline_geoalign_clip import GeoAlignCLIPDetectionPipeline
from .model.modeling_geoalign_clip import GeoAlignCLIPModel
from .model.pipeline_geoalign_clip import ZeroShotRegionClassificationPipeline
from .model.processing_geoalign_clip import GeoAlignCLIPProcessor


def register() -> None:
    """Register everything."""
    image_processors = {"pil": CLIPImageProcessorPil}
    if transformers.utils.is_torchvision_available():
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
