"""The task `zero-shot-object-detection` of transformers, for GeoAlignCLIP and for all other models."""

from transformers.pipelines.zero_shot_object_detection import ZeroShotObjectDetectionPipeline

from ..model.detection_pipeline_geoalign_clip import GeoAlignCLIPDetectionPipeline
from ..model.modeling_geoalign_clip import GeoAlignCLIPModel
from ..model.processing_geoalign_clip import GeoAlignCLIPProcessor


class ZeroShotObjectDetection(ZeroShotObjectDetectionPipeline):
    """Builds our pipeline for a GeoAlignCLIP, and transformers' own for every other model."""

    def __new__(cls, model, tokenizer=None, image_processor=None, processor=None, **kwargs):
        """Build the pipeline; the arguments are those that `transformers.pipeline` passes."""
        if not isinstance(model, GeoAlignCLIPModel):
            parts = {"tokenizer": tokenizer, "image_processor": image_processor, "processor": processor}
            return ZeroShotObjectDetectionPipeline(model=model, **parts, **kwargs)
        if processor is None:
            patch_size = model.config.vision_config.patch_size
            processor = GeoAlignCLIPProcessor(image_processor, tokenizer, patch_size)
        return GeoAlignCLIPDetectionPipeline(model=model, processor=processor, **kwargs)
