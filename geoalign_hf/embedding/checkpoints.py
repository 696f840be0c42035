"""Loading of models and processors by their name, with one kind of error for everything that is wrong."""

from collections.abc import Callable
from typing import Any, TypeVar

from transformers import AutoModel, AutoProcessor

T = TypeVar("T")
PEFT_ONLY = ("PeftModel", "get_peft_model")  # in errors about adapters that only PEFT itself can load


def load_model(name: str, **options) -> Any:  # of the class that the config names
    """Load a model with all of its weights.

    Args:
        name: folder or Hub repository of a model or an adapter.
        **options: options of `from_pretrained`.

    Raises:
        ValueError: if a file is damaged or of another kind, or the weights are not those of the config.
            transformers would replace missing weights by random ones.
    """
    model, report = _load(name, lambda: AutoModel.from_pretrained(name, output_loading_info=True, **options))
    for kind in ("missing", "unexpected"):
        keys = sorted(key for key in report[f"{kind}_keys"] if not key.endswith("position_ids"))
        if keys:
            raise ValueError(
                f"{name} has {len(keys)} {kind} weights, among them {keys[0]}. Its weights are not those "
                "that its config.json describes. Save or download the model again."
            )
    return model


def load_processor(name: str) -> Any:
    """Load the processor of a model.

    Raises:
        ValueError: if a file is damaged or of another kind.
    """
    return _load(name, lambda: AutoProcessor.from_pretrained(name))


def _load(name: str, load: Callable[[], T]) -> T:
    """Call a function of transformers, which raises errors of many kinds at damaged files."""
    try:
        return load()
    except (OSError, ModuleNotFoundError):  # these name a file or a package
        raise
    except ImportError as error:
        raise ValueError(f"{name} needs a package that is missing: {error}") from error
    except Exception as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if any(word in found for word in PEFT_ONLY):
            advice = (
                "Save what PeftModel.from_pretrained(base_model, adapter).merge_and_unload() returns, and "
                "load that."
            )
        else:
            advice = "A file in it is damaged, or of another model. Save or download it again."
        raise ValueError(f"{name} cannot be loaded ({found:.500}). {advice}") from error
