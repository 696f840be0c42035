"""Loading of models and processors by their name, with one kind of error for everything that is wrong."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoModel, AutoProcessor

from ..storage import list_weight_files

T = TypeVar("T")
SHORTEST = 3  # tokens of a text of one word
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
    if Path(name).is_dir():
        list_weight_files(name)  # transformers follows an index out of the folder
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
    processor = _load(name, lambda: AutoProcessor.from_pretrained(name))
    fault = next(_list_faults(processor), None)
    if fault:
        raise ValueError(f"the processor of {name} {fault}. Correct the file, or save or download it again.")
    return processor


def check_tokens(tokenizer: Any, model: Any) -> None:
    """Refuse a tokenizer with special tokens that the text tower of a model does not have.

    Raises:
        ValueError: with the token.
    """
    vocab_size = model.config.text_config.vocab_size
    for token, index in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True):
        if index >= vocab_size:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} gives {token!r} the number {index}, but the text "
                f"tower has {vocab_size} tokens. Use the tokenizer of this model."
            )


def check_text_length(tokenizer: Any, model: Any) -> None:
    """Refuse a tokenizer that cuts texts at more tokens than the text tower of a model has positions.

    Raises:
        ValueError: with both numbers.
    """
    positions = model.config.text_config.max_position_embeddings
    if tokenizer.model_max_length > positions:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has model_max_length {tokenizer.model_max_length}, "
            f"but the text tower has {positions} positions. Set model_max_length to {positions}."
        )


def _list_faults(processor: Any) -> Iterator[str]:
    """Say what is wrong with settings that transformers does not check when it loads them."""
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            yield f"is a {type(processor).__name__} without {part}; expected images and texts"
            return
    tokenizer, file = processor.tokenizer, "in tokenizer_config.json"
    longest, names = tokenizer.model_max_length, tokenizer.model_input_names
    if type(longest) is not int or longest < SHORTEST:
        yield f"has model_max_length {longest!r:.50} {file}; expected a whole number from {SHORTEST}"
    if not isinstance(names, (list, tuple)) or "input_ids" not in names:
        yield f"has model_input_names {names!r:.50} {file}; expected a list with 'input_ids'"
    if tokenizer.pad_token_id is None:
        yield f"has no pad_token {file}; texts of different length need one"
    images = processor.image_processor
    for key, is_right in (("image_std", lambda number: number != 0), ("image_mean", math.isfinite)):
        numbers = getattr(images, key, None)
        if images.do_normalize and not _are_numbers(numbers, is_right):
            yield f"has {key} {numbers!r:.50}; expected one number per channel, and a deviation is not 0"
    factor = getattr(images, "rescale_factor", None)
    if images.do_rescale and not _are_numbers([factor], lambda number: number != 0):
        yield f"has rescale_factor {factor!r:.50}; expected a number that is not 0"
    size = getattr(images, "size", None)
    sides = [side for side in dict(size or {}).values() if side is not None]
    if images.do_resize and not (sides and all(type(side) is int and side > 0 for side in sides)):
        yield f"has size {size!r:.80}; expected whole numbers of pixels"


def _are_numbers(values: Any, is_right: Callable[[float], bool]) -> bool:
    values = values if isinstance(values, (list, tuple)) else [values]
    return all(
        isinstance(value, (int, float)) and math.isfinite(value) and is_right(value) for value in values
    )


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
