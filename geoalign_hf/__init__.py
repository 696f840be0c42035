"""GeoAlignCLIP for the Hugging Face stack: a CLIP for overhead images, their regions and concepts.

Importing this costs next to nothing: public names load on first use, and our classes enter
transformers' Auto tables at the moment those tables themselves are first imported.
"""

import importlib
import importlib.machinery
import sys

__version__ = "0.1.0"

_PUBLIC = {
    "GeoAlignCLIPConfig": "model.configuration_geoalign_clip",
    "GeoAlignCLIPModel": "model.modeling_geoalign_clip",
    "GeoAlignCLIPOutput": "model.modeling_geoalign_clip",
    "GeoAlignCLIPProcessor": "model.processing_geoalign_clip",
    "ZeroShotRegionClassificationPipeline": "model.pipeline_geoalign_clip",
    "ConceptBank": "embedding.concept_bank",
    "LossWeights": "losses.objective",
    "TrainingConfig": "training.arguments",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


def _register_model():
    from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification

    config, model = __getattr__("GeoAlignCLIPConfig"), __getattr__("GeoAlignCLIPModel")
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(config, model, exist_ok=True)


def _register_processor():
    import transformers
    from transformers import (
        AutoImageProcessor,
        AutoProcessor,
        AutoTokenizer,
        CLIPImageProcessorPil,
        CLIPTokenizer,
    )

    config = __getattr__("GeoAlignCLIPConfig")
    image_processors = {"pil": CLIPImageProcessorPil}
    if transformers.utils.is_torchvision_available():
        image_processors["torchvision"] = transformers.CLIPImageProcessor
    AutoProcessor.register(config, __getattr__("GeoAlignCLIPProcessor"), exist_ok=True)
    AutoImageProcessor.register(config, image_processor_classes=image_processors, exist_ok=True)
    AutoTokenizer.register(config, tokenizer_class=CLIPTokenizer, exist_ok=True)


def _register_pipeline():
    from transformers import AutoModel
    from transformers.pipelines import PIPELINE_REGISTRY

    pipeline = __getattr__("ZeroShotRegionClassificationPipeline")
    PIPELINE_REGISTRY.register_pipeline(
        pipeline.task_name, pipeline, pt_model=(AutoModel,), type="multimodal"
    )


class _RegisterOnImport:
    """Registers our classes as soon as the tables of transformers that they belong in are imported.

    Registering needs transformers' and our own modules whole, so it waits until the outermost import
    of either has come to its end.
    """

    def __init__(self):
        self.depth = 0
        self.pending = {
            "transformers.models.auto.configuration_auto": _register_model,
            "transformers.models.auto.processing_auto": _register_processor,
            "transformers.pipelines": _register_pipeline,
        }

    def find_spec(self, name: str, path=None, target=None):
        if not name.startswith(("transformers.", "geoalign_hf.")):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module):
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            self.register()

        spec.loader.exec_module = execute_and_register
        return spec

    def register(self):
        for name in list(self.pending):
            if self.depth == 0 and name in self.pending and name in sys.modules:
                self.pending.pop(name)()
        if not self.pending and self in sys.meta_path:
            sys.meta_path.remove(self)


_hook = _RegisterOnImport()
sys.meta_path.insert(0, _hook)
_hook.register()
