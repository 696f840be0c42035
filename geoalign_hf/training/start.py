"""Loads the model that training starts from: a GeoAlignCLIP, or another CLIP, which is converted."""

from transformers import AutoModel, AutoProcessor, PreTrainedConfig, ProcessorMixin

from ..convert.convert import convert_clip
from ..model.configuration_geoalign_clip import GeoAlignCLIPConfig
from ..model.modeling_geoalign_clip import GeoAlignCLIPModel

# Defaults for weights that are already trained; those of `GeoAlignTrainingArguments` suit fresh ones.
FINE_TUNING = {"learning_rate": 1e-5, "warmup_steps": 0.1}


def load_start(source: str) -> tuple[GeoAlignCLIPModel, ProcessorMixin]:
    """Load the model to train, and its processor.

    Args:
        source: folder or Hub repository of a GeoAlignCLIP, or any source that `convert_clip` reads, such as
            `openai/clip-vit-base-patch16`.

    Returns:
        The model and its processor.
    """
    try:
        settings, _ = PreTrainedConfig.get_config_dict(source)
    except OSError:  # OpenCLIP's files have no config.json
        settings = {}
    if settings.get("model_type") != GeoAlignCLIPConfig.model_type:
        return convert_clip(source)
    return AutoModel.from_pretrained(source), AutoProcessor.from_pretrained(source)
