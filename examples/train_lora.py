"""Fine-tune a GeoAlignCLIP with LoRA: adapters on its towers learn, the base stays as it is.

    python examples/train_lora.py --model outputs/train/final --dataset outputs/rows \
        --eval_dataset test.json --images images/ --lora vision,text --lora_rank 16
    python examples/train_lora.py ... --lora vision --lora_blocks 4 --train_projections

`--model` is a folder or a Hub repository; `--help` lists adapters, training and loss weights. Takes less
memory and time than training all of it, see benchmarks/lora_memory.py. Prints the share that is trained, the
size of the adapter, and the region accuracy before, after, and after merging. Leaves `final/` (adapter,
processor, card), which `AutoModel.from_pretrained` loads over its base, and `merged/`, a model of its own.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import PartialState
from peft import PeftModel
from transformers import AutoModel, AutoProcessor, HfArgumentParser

from geoalign_hf.data.loading import read_rows
from geoalign_hf.evaluation.classification import RegionClassificationEvaluator
from geoalign_hf.evaluation.results import write_metrics
from geoalign_hf.hub.cards import describe_dataset, write_card
from geoalign_hf.losses.objective import LossWeights
from geoalign_hf.training.arguments import GeoAlignTrainingArguments
from geoalign_hf.training.lora import AdapterConfig, adapt_model, describe_trained
from geoalign_hf.training.trainer import GeoAlignTrainer


@dataclass
class ScriptArguments:
    """What to adapt, and to what."""

    model: str = field(metadata={"help": "Folder or Hub repository of the base model."})
    dataset: str = field(metadata={"help": "Folder or Hub repository of rows to train on, or a COCO file."})
    eval_dataset: str = field(metadata={"help": "Rows (split test) or COCO file to evaluate on."})
    images: str | None = field(default=None, metadata={"help": "Folder of the images of a COCO file."})


def main() -> None:
    """Adapt, train, merge, compare."""
    parser = HfArgumentParser((ScriptArguments, LossWeights, GeoAlignTrainingArguments, AdapterConfig))
    parser.set_defaults(lora="vision,text", output_dir="outputs/train_lora")
    arguments, weights, args, adapters = parser.parse_args_into_dataclasses()

    # 1. Rows, and the base with adapters that do nothing yet.
    rows = read_rows(arguments.dataset, arguments.images, "train")
    eval_rows = read_rows(arguments.eval_dataset, arguments.images, "test")
    processor = AutoProcessor.from_pretrained(arguments.model)
    model = adapt_model(AutoModel.from_pretrained(arguments.model), adapters)
    if os.environ.get("RANK", "0") == "0":  # Accelerate is not up yet
        print(describe_trained(model))

    # 2. Training, with evaluation before and after every epoch. Checkpoints hold only the adapter.
    evaluator = RegionClassificationEvaluator(eval_rows)
    card = {"script": asdict(arguments), "adapters": asdict(adapters), "base_model": arguments.model}
    card |= {"data": describe_dataset(arguments.dataset)}
    trainer = GeoAlignTrainer(
        model,
        args,
        train_dataset=rows,
        processing_class=processor,
        loss_weights=weights,
        evaluators=[evaluator],
        card_settings=card,
    )
    trainer.train()
    folder, state = Path(args.output_dir) / "final", PartialState()
    if not state.is_main_process:
        return state.destroy_process_group()

    # 3. The adapter, back over its base, and merged into it: a model that needs no PEFT.
    size = (folder / "adapter_model.safetensors").stat().st_size
    print(f"{folder / 'adapter_model.safetensors'}: {size / 2**20:.2f} MiB")
    adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(arguments.model), folder)
    merged = adapted.merge_and_unload().to(state.device)
    output_dir = Path(args.output_dir)
    merged.save_pretrained(output_dir / "merged")
    processor.save_pretrained(output_dir / "merged")

    # 4. What came of it, each number with its protocol.
    metrics = json.loads((output_dir / "metrics.json").read_text())
    metrics["regions merged"] = evaluator(merged, processor)
    for name, scores in metrics.items():
        print(
            f"{name:>14}: region top-1 micro {scores['top1_micro']:.4f}, macro {scores['top1_macro']:.4f} "
            f"on {scores['num_regions']} boxes of {len(eval_rows)} images"
        )
    write_metrics(output_dir / "metrics.json", metrics)
    settings = json.loads((output_dir / "args.json").read_text())
    write_card(output_dir / "merged", {"regions merged": metrics["regions merged"]}, settings)
    state.destroy_process_group()


if __name__ == "__main__":
    main()
