"""What of a model is trained: LoRA adapters on its towers, by PEFT, or all but frozen towers.

In comes a model, out comes the same one adapted, which trains, evaluates and saves as any other does.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

TOWERS = ("vision", "text")
LAYERS = r"(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"  # of a block


def _option(default, what: str):
    return field(default=default, metadata={"help": what})


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained. Every field says in its help what it is.

    Raises:
        ValueError: if a tower is unknown, a number is too low, or towers are frozen beside adapters.
    """

    lora: str = _option("", "towers that get LoRA adapters: vision, text or vision,text; all else is frozen")
    lora_rank: int = _option(16, "of each adapter")
    lora_alpha: float = _option(32, "what an adapter adds is multiplied by lora_alpha / lora_rank")
    lora_dropout: float = _option(0.0, "share of an adapter's inputs that is dropped in training")
    lora_blocks: int | None = _option(None, "the last blocks of each tower that get adapters; default: all")
    train_projections: bool = _option(False, "with LoRA: also train and save both projections")
    train_scales: bool = _option(True, "with LoRA: also train and save both logit scales")
    freeze: str = _option("", "without LoRA: towers that are not trained: vision, text or vision,text")

    def __post_init__(self):
        for name in ("lora", "freeze"):
            split_towers(getattr(self, name), name)
        for name, low in (("lora_rank", 1), ("lora_blocks", 1), ("lora_dropout", 0)):
            if getattr(self, name) is not None and getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low}.")
        if self.lora and self.freeze:
            raise ValueError(
                f"lora is {self.lora!r} and freeze is {self.freeze!r}, but beside LoRA adapters all is "
                "frozen as it is. Leave out freeze."
            )


def split_towers(towers: str, name: str = "lora") -> list[str]:
    """Split the names of towers.

    Args:
        towers: `vision`, `text`, both with a comma between them, or nothing.
        name: of the option that they are of, for the message.

    Raises:
        ValueError: if one is unknown or named twice.

    Example:
        >>> split_towers("vision,text")
        ['vision', 'text']
    """
    names = [tower.strip() for tower in towers.split(",")] if towers else []
    if not set(names) <= set(TOWERS) or len(set(names)) < len(names):
        raise ValueError(f"{name} is {towers!r}; it must be vision, text, vision,text or empty.")
    return names


def adapt_model(model: torch.nn.Module, config: AdapterConfig) -> torch.nn.Module:
    """Give a model LoRA adapters, or freeze its towers, or leave it to be trained as a whole.

    Args:
        model: a `GeoAlignCLIPModel`, changed in place.
        config: what is asked for.

    Returns:
        the model, with adapters as a `PeftModel` round it.

    Raises:
        ValueError: if the model has adapters, or fewer blocks than should get them, or projections that are
            to be trained are quantised.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            "the model has adapters already. To start from them, merge them: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload(); to train them further, pass "
            "PeftModel.from_pretrained(base, adapter, is_trainable=True) to train()."
        )
    for tower in split_towers(config.freeze, "freeze"):
        getattr(model, f"{tower}_model").requires_grad_(False)
    return add_lora(model, config) if config.lora else model


def add_lora(model: torch.nn.Module, config: AdapterConfig) -> PeftModel:
    """Wrap a model with fresh LoRA adapters, which change nothing until they are trained."""
    if config.train_projections and not model.visual_projection.weight.is_floating_point():
        raise ValueError(
            f"train_projections is set, but they are quantised to {model.visual_projection.weight.dtype}. "
            "Load the model with "
            'BitsAndBytesConfig(llm_int8_skip_modules=["visual_projection", "text_projection"]).'
        )
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type="FEATURE_EXTRACTION",  # so that AutoPeftModel finds the class of the model
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
    if base and Path(base).is_dir():  # to be found again from another working directory
        adapted.peft_config["default"].base_model_name_or_path = str(Path(base).resolve())
    return adapted


def match_layers(tower: str, depth: int, num_blocks: int | None = None) -> str:
    r"""Spell which linear layers of a tower get adapters, as PEFT's `target_modules` takes it.

    Args:
        tower: `vision` or `text`.
        depth: its blocks.
        num_blocks: the last of them that get adapters; None: all.

    Raises:
        ValueError: if the tower has fewer blocks.

    Example:
        >>> match_layers("text", 12, 2)
        'text_model\\.encoder\\.layers\\.(10|11)\\.(self_attn\\.(q|k|v|out)_proj|mlp\\.fc[12])'
    """
    num_blocks = num_blocks or depth
    if num_blocks > depth:
        raise ValueError(f"lora_blocks is {num_blocks}, but the {tower} tower has {depth} blocks. Lower it.")
    blocks = "|".join(map(str, range(depth - num_blocks, depth)))
    return rf"{tower}_model\.encoder\.layers\.({blocks})\.{LAYERS}"


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Count the numbers that are trained, and all."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)


def describe_share(model: torch.nn.Module) -> str:
    """Say how much of a model is trained.

    Example:
        >>> describe_share(torch.nn.Linear(3, 1).requires_grad_(False))
        '0 of 4 parameters are trained (0.00 %)'
    """
    trained, total = count_parameters(model)
    return f"{trained:,} of {total:,} parameters are trained ({100 * trained / total:.2f} %)"
