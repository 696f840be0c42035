"""Loads the model that training starts from: a GeoAlignCLIP, or another CLIP, which is converted."""

from transformers import PreTrainedConfig, ProcessorMixin

from ..convert.convert import convert_clip
from ..embedding.checkpoints import load_model, load_processor
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
    except (TypeError, RecursionError) as error:  # JSON, but no object
        message = f"the config.json of {source} is not a JSON object ({error}). Save it again."
        raise ValueError(message) from error
    if settings.get("model_type") != GeoAlignCLIPConfig.model_type:
        return convert_clip(source)
    return load_model(source), load_processor(source)
