"""Prepares a model for training of a part of its weights: LoRA adapters (PEFT), or frozen towers.

The prepared model is trained, evaluated and saved like any other.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from ..options import option

TOWERS = ("vision", "text")
LAYERS = r"(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"  # the linear layers of a block


@dataclass(frozen=True)
class AdapterConfig:
    """The weights that are trained: LoRA adapters on some towers, or everything but some frozen towers.

    The help text of each field describes it.

    Raises:
        ValueError: if a tower is unknown, a number is too low, or `lora` and `freeze` are both set.
    """

    _argument_group_name = "adapters"

    lora: str = option(
        default="",
        help="Towers that get LoRA adapters: vision, text or vision,text. Everything else is frozen.",
    )
    lora_rank: int = option(default=16, help="Rank of each adapter.")
    lora_alpha: float = option(
        default=32, help="Numerator of the factor lora_alpha / lora_rank on an adapter's output."
    )
    lora_dropout: float = option(
        default=0.0, help="Fraction of an adapter's inputs that is dropped in training."
    )
    lora_blocks: int | None = option(
        default=None, help="Number of last blocks of each tower that get adapters. By default, all blocks."
    )
    train_projections: bool = option(
        default=False,
        help="Training of both projections beside the LoRA adapters. They are saved with the adapters.",
    )
    train_scales: bool = option(
        default=True,
        help="Training of both logit scales beside the LoRA adapters. They are saved with the adapters.",
    )
    freeze: str = option(
        default="", help="Towers that are not trained: vision, text or vision,text. Not together with --lora."
    )

    def __post_init__(self):
        for name in ("lora", "freeze"):
            split_towers(getattr(self, name), name)
        for name, low in (("lora_rank", 1), ("lora_blocks", 1), ("lora_dropout", 0)):
            if getattr(self, name) is not None and getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low}.")
        if self.lora and self.freeze:
            raise ValueError(
                f"lora is {self.lora!r} and freeze is {self.freeze!r}, but with LoRA adapters all other "
                "weights are frozen anyway. Omit freeze."
            )


def split_towers(towers: str, name: str = "lora") -> list[str]:
    """Split a list of towers into their names.

    Args:
        towers: `vision`, `text`, `vision,text`, or an empty string.
        name: name of the option, for the message.

    Raises:
        ValueError: if a tower is unknown or named twice.

    Example:
        >>> split_towers("vision,text")
        ['vision', 'text']
    """
    names = [tower.strip() for tower in towers.split(",")] if towers else []
    if not set(names) <= set(TOWERS) or len(set(names)) < len(names):
        raise ValueError(f"{name} is {towers!r}; it must be vision, text, vision,text or empty.")
    return names


def adapt_model(model: torch.nn.Module, config: AdapterConfig) -> torch.nn.Module:
    """Add LoRA adapters to a model or freeze some of its towers, as the configuration says.

    Args:
        model: a `GeoAlignCLIPModel`, changed in place.
        config: the weights that are to be trained.

    Returns:
        The model; with adapters it is wrapped by a `PeftModel`.

    Raises:
        ValueError: if the model already has adapters, a tower has fewer than `lora_blocks` blocks, or the
            projections are to be trained but are quantized.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            "the model already has adapters. To start from them, merge them by "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload(). To train them further, pass "
            "PeftModel.from_pretrained(base, adapter, is_trainable=True) to the trainer."
        )
    for tower in split_towers(config.freeze, "freeze"):
        getattr(model, f"{tower}_model").requires_grad_(False)
    return add_lora(model, config) if config.lora else model


def add_lora(model: Any, config: AdapterConfig) -> PeftModel:
    """Wrap a model with fresh LoRA adapters. Its outputs do not change until they are trained."""
    if config.train_projections and not model.visual_projection.weight.is_floating_point():
        raise ValueError(
            f"train_projections is set, but the projections are quantized to "
            f"{model.visual_projection.weight.dtype}. Load the model with "
            'BitsAndBytesConfig(llm_int8_skip_modules=["visual_projection", "text_projection"]).'
        )
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type="FEATURE_EXTRACTION",  # AutoPeftModel finds the class of the model by it
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules="|".join(
                match_layers(tower, len(getattr(model, f"{tower}_model").encoder.layers), config.lora_blocks)
                for tower in split_towers(config.lora)
            ),
            modules_to_save=["visual_projection", "text_projection"] * config.train_projections
            + ["scene_scale", "region_scale"] * config.train_scales,
        ),
    )
    base = model.name_or_path
    if base and Path(base).is_dir():  # the adapter must find it from any working directory
        adapted.peft_config["default"].base_model_name_or_path = str(Path(base).resolve())
    return adapted


def match_layers(tower: str, depth: int, num_blocks: int | None = None) -> str:
    r"""Write the regular expression for PEFT's `target_modules` that matches the linear layers of a tower.

    Args:
        tower: `vision` or `text`.
        depth: number of blocks of the tower.
        num_blocks: number of last blocks that get adapters; None takes all.

    Raises:
        ValueError: if the tower has fewer blocks.

    Example:
        >>> match_layers("text", 12, 2)
        'text_model\\.encoder\\.layers\\.(10|11)\\.(self_attn\\.(q|k|v|out)_proj|mlp\\.fc[12])'
    """
    num_blocks = num_blocks or depth
    if num_blocks > depth:
        raise ValueError(
            f"lora_blocks is {num_blocks}, but the {tower} tower has {depth} blocks. Lower lora_blocks."
        )
    blocks = "|".join(map(str, range(depth - num_blocks, depth)))
    return rf"{tower}_model\.encoder\.layers\.({blocks})\.{LAYERS}"


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Count the parameters that are trained, and all parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)


def describe_trained(model: torch.nn.Module) -> str:
    """Write how many parameters of a model are trained.

    Example:
        >>> describe_trained(torch.nn.Linear(3, 1).requires_grad_(False))
        '0 of 4 parameters are trained (0.00 %)'
    """
    trained, total = count_parameters(model)
    return f"{trained:,} of {total:,} parameters are trained ({100 * trained / total:.2f} %)"
