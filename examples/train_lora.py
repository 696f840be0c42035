"""Fine-tune a GeoAlignCLIP with LoRA from Python, and merge the adapter into its base.

    python examples/train_lora.py --model outputs/train/final --dataset outputs/rows \
        --eval_dataset test.json --images images/ --lora vision,text --lora_rank 16

`geoalign-hf train --model ... --lora vision,text` trains the same adapter, on one or several processes. This
script shows the Python calls, and what comes after training: `final/` holds the adapter, which
`AutoModel.from_pretrained` loads over its base, and `merged/` a model that needs no PEFT.
"""

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from transformers import AutoModel, AutoProcessor, HfArgumentParser
from transformers.hf_argparser import HfArg

from geoalign_hf.data.loading import read_rows
from geoalign_hf.evaluation.classification import RegionClassificationEvaluator
from geoalign_hf.hub.cards import describe_dataset, write_card
from geoalign_hf.training.arguments import GeoAlignTrainingArguments
from geoalign_hf.training.lora import AdapterConfig, adapt_model, describe_trained
from geoalign_hf.training.trainer import GeoAlignTrainer


@dataclass
class ScriptArguments:
    """The model to adapt, and the rows."""

    model: str = HfArg(help="Folder or Hub repository of the base model.")
    dataset: str = HfArg(help="Folder or Hub repository of rows to train on, or a COCO file.")
    eval_dataset: str = HfArg(help="Rows (split test) or COCO file to evaluate on.")
    images: str | None = HfArg(default=None, help="Folder of the images of a COCO file.")


def main() -> None:
    """Train an adapter, merge it and compare the scores."""
    parser = HfArgumentParser((ScriptArguments, AdapterConfig, GeoAlignTrainingArguments))
    parser.set_defaults(lora="vision,text", output_dir="outputs/train_lora")
    options, adapters, args = parser.parse_args_into_dataclasses()

    model = adapt_model(AutoModel.from_pretrained(options.model), adapters)
    processor = AutoProcessor.from_pretrained(options.model)
    evaluator = RegionClassificationEvaluator(read_rows(options.eval_dataset, options.images, None, "test"))
    print(describe_trained(model))
    trainer = GeoAlignTrainer(
        model,
        args,
        train_dataset=read_rows(options.dataset, options.images),
        processing_class=processor,
        evaluators=[evaluator],
        card_settings={"base_model": options.model, "data": describe_dataset(options.dataset)},
    )
    trainer.train()

    final, target = Path(args.output_dir, "final"), Path(args.output_dir, "merged")
    adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(options.model), final)
    merged = adapted.merge_and_unload()
    merged.save_pretrained(target)
    processor.save_pretrained(target)
    scores = {"regions merged": evaluator(merged, processor)}
    write_card(target, scores, trainer.settings)

    start, end = trainer.scores["start"]["regions"], trainer.scores["final"]["regions"]
    for name, each in {"before": start, "after": end, "merged": scores["regions merged"]}.items():
        print(f"{name}: region top-1 micro {each['top1_micro']:.4f}, macro {each['top1_macro']:.4f}")
    print(f"wrote {final} and {target}")


if __name__ == "__main__":
    main()
