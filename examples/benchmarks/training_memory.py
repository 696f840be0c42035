"""Measure the peak memory and the time of training steps of a full-size CLIP, for several batch sizes.

    python examples/benchmarks/training_memory.py --batch_sizes 2,4,8
    python examples/benchmarks/training_memory.py --ways full,mini_batch,lora --bf16       # on a GPU

The model is a ViT-B/16 CLIP of OpenAI's size with random weights, converted by `convert_clip` as
`--model openai/clip-vit-base-patch16` is. Each row has up to 4 boxes. On a GPU the peak is that of the
allocator, on a CPU that of the process. Every measurement runs in a new process. Prints a Markdown table.
"""

import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # of the examples
from toy_rows import CONCEPTS, draw_rows
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    HfArgumentParser,
    TrainerCallback,
)
from transformers.hf_argparser import HfArg

from geoalign_hf.convert.from_scratch import train_tokenizer
from geoalign_hf.data.schema import build_rows
from geoalign_hf.training.arguments import GeoAlignTrainingArguments
from geoalign_hf.training.lora import AdapterConfig, adapt_model
from geoalign_hf.training.start import load_start
from geoalign_hf.training.trainer import GeoAlignTrainer

WAYS = {
    "full": {},
    "mini_batch": {"mini_batch_size": 2},
    "checkpointing": {"activation_checkpointing": True},
    "lora": {},
}


@dataclass
class Options:
    """Options of the benchmark."""

    batch_sizes: str = HfArg(default="2,4,8", help="rows per step, with commas between")
    ways: str = HfArg(default="full,mini_batch,lora", help=f"ways of training, of {', '.join(WAYS)}")
    num_steps: int = HfArg(default=2, help="steps per measurement")
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


class StepClock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        """Note the time."""
        self.times.append(time.perf_counter())


def measure(source: str, way: str, batch_size: int, num_steps: int, bf16: bool) -> tuple[float, float]:
    """Train a few steps; return the peak memory in GiB, and the seconds of the last step."""
    model, processor = load_start(source)
    if way == "lora":
        model = adapt_model(model, AdapterConfig(lora="vision,text"))
    rows = build_rows(draw_rows(batch_size * num_steps))
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        args = GeoAlignTrainingArguments(
            output_dir=folder, per_device_train_batch_size=batch_size, num_train_epochs=1, max_regions=4,
            save_strategy="no", bf16=bf16, disable_tqdm=True, **WAYS[way],
        )  # fmt: skip
        trainer = GeoAlignTrainer(
            model, args, train_dataset=rows, processing_class=processor, callbacks=[clock]
        )  # fmt: skip
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    return peak / 2**30, clock.times[-1] - clock.times[-2]


def main() -> None:
    """Measure every way with every batch size, each in a fresh process."""
    options = HfArgumentParser(Options).parse_args_into_dataclasses()[0]
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            save_clip(Path(folder))
        print("| way | batch size | peak memory, GiB | seconds per step |\n| --- | --- | --- | --- |")
        for way in options.ways.split(","):
            for batch_size in map(int, options.batch_sizes.split(",")):
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    source = options.model or folder
                    job = pool.submit(measure, source, way, batch_size, options.num_steps, options.bf16)
                    peak, seconds = job.result()
                print(f"| {way} | {batch_size} | {peak:.2f} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
