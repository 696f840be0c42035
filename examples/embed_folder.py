"""Embed a folder of images, and boxes in them, to Parquet shards, in one process or in many.

    python examples/embed_folder.py --model outputs/train/final --images tiles/
    python examples/embed_folder.py --model outputs/train/final --images images/ --coco boxes.json
    accelerate launch --num_processes 8 examples/embed_folder.py --model ... --images ...     # GPUs
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/embed_folder.py --model ... --images ...

Several machines: the same `accelerate launch` on each, with `--num_machines`, `--machine_rank` and
`--main_process_ip`, and an `--output_dir` that all of them see. 447 images with 675 boxes take 8 seconds on
one core with a small model. Writes `embeds-00000-of-00040.parquet` and so on, of `--shard_size` images each,
and `embeds.json`, which says by which model and how. Prints what each process has made. What is in the shards
does not depend on the number of processes, but for rounding; a run that was killed goes on when the command
is given again. A wrong image stops it, or is left out and told in `embeds-*.jsonl`, a wrong box in
`annotations.jsonl`. `examples/search.py` searches them.
"""

import argparse
from pathlib import Path

from accelerate import Accelerator
from transformers import AutoModel, AutoProcessor
from transformers.utils import logging

from geoalign_hf import Embedder
from geoalign_hf.data.views import REGION_SOURCES
from geoalign_hf.embedding.shards import EmbeddingJob, prepare_folder, write_shards
from geoalign_hf.training.launch import check_processes


def main() -> None:
    """List, load, embed this process's shards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub repository")
    parser.add_argument("--images", type=Path, required=True, help="folder; what lies deeper counts, too")
    parser.add_argument("--coco", type=Path, help="COCO file of boxes, with file names relative to --images")
    parser.add_argument("--region_source", default="image", choices=REGION_SOURCES)
    parser.add_argument("--image_size", type=int, help="side of pixel_values; default: the model's own")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument(
        "--shard_size", type=int, default=256, help="images of a shard; make at least one for each process"
    )
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "float16"], help="of the embeddings"
    )
    parser.add_argument("--on_error", default="stop", choices=["stop", "skip"], help="at a wrong image")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/embed_folder"))
    arguments = parser.parse_args()
    accelerator = Accelerator()
    check_processes(accelerator.num_processes, "examples/embed_folder.py")
    if not accelerator.is_main_process:
        logging.disable_progress_bar()

    # 1. What there is to do; every process makes the same list.
    job = EmbeddingJob(
        arguments.images,
        arguments.output_dir,
        arguments.coco,
        arguments.region_source,
        arguments.shard_size,
        arguments.dtype,
        arguments.on_error,
    )
    model = AutoModel.from_pretrained(arguments.model).to(accelerator.device)
    processor = AutoProcessor.from_pretrained(arguments.model)
    embedder = Embedder(model, processor, arguments.image_size, arguments.batch_size)

    # 2. The folder, by one process while the others wait. From here on nobody waits for anybody.
    if accelerator.is_main_process:
        prepare_folder(job, job.describe(embedder, arguments.model))
    accelerator.wait_for_everyone()

    # 3. The shards of this process that are not there yet.
    num_shards = num_left_out = 0
    for _, left_out in write_shards(job, embedder, accelerator.process_index, accelerator.num_processes):
        num_shards, num_left_out = num_shards + 1, num_left_out + left_out
    print(
        f"process {accelerator.process_index} of {accelerator.num_processes}: made {num_shards} shards",
        f"left out {num_left_out} images of these and {len(job.report.entries)} annotations of all",
        f"{len(job.rows)} images make {job.num_shards} shards in {arguments.output_dir}",
        sep="; ",
    )


if __name__ == "__main__":
    main()
