"""Prints the memory that training a full-size CLIP takes, and the largest batch that fits common GPUs.

    python examples/benchmarks/training_memory.py            # float32
    python examples/benchmarks/training_memory.py --bf16     # as with --bf16 of geoalign-hf train

The model is a ViT-B/16 CLIP of OpenAI's size with random weights, converted by `convert_clip` as
`--model openai/clip-vit-base-patch16` is. Each row has up to 4 regions, and the objective is the
default one. For each way of training, a step with AdamW runs for several batch sizes, and the bytes of all
tensors are counted (see accounting.py). It needs about 4 GB and no GPU, and every run gives the same numbers.
A line through the peaks of the two largest batches gives the fixed bytes and the bytes per row, and these the
largest batch that fits. The operations are those of PyTorch on a CPU; nothing was compared with a GPU.
"""

import copy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # of the examples
from accelerate import Accelerator
from accounting import MemoryAccount
from toy_rows import CONCEPTS, draw_rows
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, HfArgumentParser
from transformers.hf_argparser import HfArg

from geoalign_hf.convert.from_scratch import train_tokenizer
from geoalign_hf.data.schema import build_rows
from geoalign_hf.losses.objective import LossWeights
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.training.arguments import GeoAlignTrainingArguments
from geoalign_hf.training.inputs import prepare_data
from geoalign_hf.training.lora import AdapterConfig, adapt_model
from geoalign_hf.training.start import load_start
from geoalign_hf.training.step import compute_gradients

LORA = AdapterConfig(lora="vision,text")
# Ways of training: their adapters, whether activations are computed again, and the size of a mini-batch.
WAYS = {
    "full": (AdapterConfig(), False, None),
    "full, mini_batch_size 1": (AdapterConfig(), False, 1),
    "full, gradient checkpointing": (AdapterConfig(), True, None),
    "LoRA": (LORA, False, None),
    "LoRA, gradient checkpointing": (LORA, True, None),
}
GPUS = (12, 16, 24, 40, 80)  # GiB
RESERVED = 1.5  # GiB assumed for the CUDA context, working memory and what the allocator cannot use


@dataclass
class Options:
    """Options of the benchmark."""

    batch_sizes: str = HfArg(default="1,2,4,8", help="rows per step, with commas between")
    bf16: bool = HfArg(default=False, help="whether to compute in bfloat16")
    model: str | None = HfArg(default=None, help="CLIP to train; default: ViT-B/16 with random weights")


def save_clip(folder: Path) -> None:
    """Save a ViT-B/16 CLIP of OpenAI's size with random weights, as transformers saves one."""
    torch.manual_seed(0)
    vision = {"patch_size": 16, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    tokenizer = train_tokenizer(f"a photo of a {name}, seen from above" for name in CONCEPTS)
    text = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text |= {"vocab_size": 49408}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text)).save_pretrained(folder)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size=224)
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)


def measure(model, processor, way: str, batch_sizes: list[int], args, accelerator: Accelerator) -> dict:
    """Run a step for each batch size; return the peaks, and what weights and optimizer take, in bytes."""
    adapters, is_checkpointed, mini_batch_size = WAYS[way]
    model = adapt_model(copy.deepcopy(model), adapters).train()
    if is_checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sizes = {"weights": _count_bytes(model.parameters()), "optimizer": 2 * _count_bytes(trained), "peaks": []}
    for batch_size in batch_sizes:
        rows, weights = build_rows(draw_rows(batch_size)), LossWeights()
        views, collator = prepare_data(rows, processor, args, weights, None, CONCEPT_TEMPLATES)
        batch = collator([views[i] for i in range(batch_size)])
        optimizer = torch.optim.AdamW(trained, 0.0, fused=True)
        with MemoryAccount() as account:
            account.count([list(model.parameters()), list(model.buffers()), list(batch.values())])
            for parameter in trained:  # a step without a batch, after which the optimizer has its state
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad()
            compute_gradients(accelerator, model, batch, weights, None, mini_batch_size)
            optimizer.step()
            optimizer.zero_grad()
        sizes["peaks"].append(account.peak)
    return sizes


def _count_bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main() -> None:
    """Measure all ways, and print both tables."""
    options = HfArgumentParser(Options).parse_args_into_dataclasses()[0]
    args = GeoAlignTrainingArguments(max_regions=4, report_to="none")
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if options.bf16 else "no")
    batch_sizes = [int(size) for size in options.batch_sizes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            save_clip(Path(folder))
        model, processor = load_start(options.model or folder)
        found = {}
        print(f"| GiB at a batch of | {' | '.join(map(str, batch_sizes))} | weights | optimizer |")
        print(f"| --- |{' --- |' * (len(batch_sizes) + 2)}")
        for way in WAYS:
            found[way] = measure(model, processor, way, batch_sizes, args, accelerator)
            numbers = [*found[way]["peaks"], found[way]["weights"], found[way]["optimizer"]]
            print(f"| {way} | {' | '.join(f'{number / 2**30:.2f}' for number in numbers)} |", flush=True)
    print(f"\n| largest batch | fixed, GiB | per row, GiB | {' | '.join(f'{gpu} GiB' for gpu in GPUS)} |")
    print(f"| --- |{' --- |' * (len(GPUS) + 2)}")
    for way in WAYS:
        # With small batches the peak is that of the optimizer, which does not grow with the batch.
        per_row, fixed = np.polyfit(batch_sizes[-2:], np.array(found[way]["peaks"][-2:]) / 2**30, 1)
        # Without growth between the two batches, the line says nothing about larger ones.
        fits = [max(0, int((gpu - RESERVED - fixed) / per_row)) if per_row > 0 else "-" for gpu in GPUS]
        print(f"| {way} | {fixed:.2f} | {per_row:.4f} | {' | '.join(map(str, fits))} |")


if __name__ == "__main__":
    main()
