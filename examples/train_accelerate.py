"""Train with a loop of your own: an Accelerator, `RowCollator` and `compute_gradients`, without a Trainer.

    python examples/train_accelerate.py --model outputs/train/final --dataset outputs/rows
    torchrun --nproc_per_node 2 examples/train_accelerate.py ...
    accelerate launch --config_file examples/accelerate_configs/ddp.yaml examples/train_accelerate.py ...

It gives the losses of `GeoAlignTrainer`. `--resume` continues from the last complete epoch.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.distributed.checkpoint import state_dict as states
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoProcessor, HfArgumentParser, get_cosine_schedule_with_warmup
from transformers.hf_argparser import HfArg

from geoalign_hf import Augmentation, LossWeights, RegionClassificationEvaluator, RowCollator
from geoalign_hf.data.loading import read_rows
from geoalign_hf.data.schema import list_concepts
from geoalign_hf.data.training_dataset import EpochSampler, TrainingDataset
from geoalign_hf.training.checkpoints import load_tree, resolve_checkpoint, save_tree, write_folder
from geoalign_hf.training.identity import check_same_run, describe_loop
from geoalign_hf.training.launch import check_batch, check_processes
from geoalign_hf.training.step import compute_gradients


@dataclass
class Options:
    """Options of the script."""

    model: str = HfArg(help="folder or Hub repository of the GeoAlignCLIP to start from")
    dataset: str = HfArg(help="rows to train on: folder, Hub repository, or COCO file")
    eval_dataset: str | None = HfArg(default=None, help="rows to evaluate on, as for --dataset")
    images: str | None = HfArg(default=None, help="folder of the images of a COCO file")
    output_dir: str = HfArg(default="outputs/train_accelerate", help="folder for checkpoints")
    num_train_epochs: int = HfArg(default=10, help="number of passes over the rows")
    per_device_train_batch_size: int = HfArg(default=32, help="number of rows per process and step")
    mini_batch_size: int | None = HfArg(default=None, help="number of rows that are encoded at once")
    learning_rate: float = HfArg(default=1e-5, help="peak learning rate")
    seed: int = HfArg(default=0, help="seed of the order and of the augmentation")
    resume: bool = HfArg(default=False, help="whether to continue from the newest checkpoint")


def main() -> None:
    """Train, evaluate and save after every epoch."""
    options = HfArgumentParser(Options).parse_args_into_dataclasses()[0]
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    check_processes(accelerator.num_processes)
    torch.manual_seed(options.seed)

    # 1. Data. The order and the augmentation follow from the seed, the epoch and the index.
    rows = read_rows(options.dataset, options.images)
    eval_rows = options.eval_dataset and read_rows(options.eval_dataset, options.images, None, "test")
    model = AutoModel.from_pretrained(options.model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(options.model)
    weights, max_regions = LossWeights(), max(1, max(map(len, rows["boxes"])))
    size, crops = processor.image_processor.size["height"], 2 if weights.reads_crops else None
    dataset = TrainingDataset(rows, Augmentation(), max_regions, options.seed, 10, crops, size)
    sampler = EpochSampler(len(dataset), options.seed)
    texts = {"text_kinds": weights.text_kinds, "vocabulary": list_concepts(rows)}
    collator = RowCollator(processor, max_regions, **texts)
    batch_size = options.per_device_train_batch_size
    check_batch(len(dataset), batch_size, accelerator.num_processes)
    loader = DataLoader(dataset, batch_size, sampler=sampler, collate_fn=collator, drop_last=True)

    # 2. Optimizer and schedule. Matrices decay, vectors and scales do not.
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    decisive = ("num_train_epochs", "per_device_train_batch_size", "learning_rate", "seed")
    identity = describe_loop(accelerator, model, rows) | {name: getattr(options, name) for name in decisive}
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, options.learning_rate, betas=(0.9, 0.98))
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    num_steps = options.num_train_epochs * len(loader)
    schedule = get_cosine_schedule_with_warmup(optimizer.optimizer, -(-num_steps // 20), num_steps)

    # 3. The newest checkpoint, if it is of the same run. It is read without unpickling anything.
    output_dir, first_epoch = Path(options.output_dir), 0
    whole = states.StateDictOptions(full_state_dict=True)
    if newest := resolve_checkpoint(output_dir, "last"):
        if not options.resume:
            raise SystemExit(f"{output_dir} holds {newest.name}. Add --resume, or give another --output_dir.")
        state = load_tree(newest / "state" / "loop.safetensors")
        check_same_run(newest, state["identity"], identity)
        model.load_state_dict(state["model"])
        states.set_optimizer_state_dict(model, optimizer.optimizer, state["optimizer"], options=whole)
        schedule.load_state_dict(state["schedule"])
        first_epoch = state["epoch"] + 1
    accelerator.print(f"Training starts from {newest or 'the beginning: no checkpoint is resumed'}.")

    # 4. The loop.
    for epoch in range(first_epoch, options.num_train_epochs):
        dataset.epoch = sampler.epoch = epoch
        prepared.train()
        for batch in loader:
            terms = compute_gradients(accelerator, prepared, batch, weights, None, options.mini_batch_size)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            accelerator.print(f"epoch {epoch}: loss {terms['loss'].item():.6f}")
        if eval_rows and accelerator.is_main_process:
            scores = RegionClassificationEvaluator(eval_rows)(model, processor)
            print(f"epoch {epoch}: region top-1 macro {scores['top1_macro']:.4f}")
        state = {"identity": identity, "epoch": epoch, "schedule": schedule.state_dict()}
        state["optimizer"] = states.get_optimizer_state_dict(model, optimizer.optimizer, options=whole)
        with write_folder(accelerator, output_dir / f"checkpoint-{epoch + 1}") as folder:
            if accelerator.is_main_process:
                model.save_pretrained(folder)
                processor.save_pretrained(folder)
                save_tree(state | {"model": model.state_dict()}, folder / "state" / "loop.safetensors")
    accelerator.end_training()


if __name__ == "__main__":
    main()
