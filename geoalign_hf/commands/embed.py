"""`geoalign-hf embed`."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from accelerate import Accelerator, InitProcessGroupKwargs
from transformers.utils import logging

from ..embedding.shards import EmbeddingJob, run_job
from ..images import ImageOptions
from ..options import option
from ..training.launch import check_processes
from .inputs import ModelOptions

EMBEDS = "outputs/embeds"


@dataclass
class EmbedOptions:
    """The images, and the shards that they become."""

    _positional = ("images",)

    images: str = option(help="Folder of images. Images in its subfolders are included.")
    coco: str | None = option(
        default=None, help="COCO file of boxes, with file names relative to the folder of images."
    )
    region_source: Literal["image", "window", "crop", "both"] | None = option(
        default=None,
        help="Source of the embedding of a box: the whole image, a window or crop around the box, or both. "
        "By default, the one that the model was trained for.",
    )
    shard_size: int = option(
        default=256,
        help="Number of images per shard. Every process needs at least one shard to have work.",
    )
    dtype: Literal["float32", "float16"] = option(default="float32", help="Type of the stored embeddings.")
    on_error: Literal["stop", "skip"] = option(
        default="stop",
        help="Reaction to an image or box that cannot be read. What is skipped is listed in a file.",
    )
    output_dir: str = option(default=EMBEDS, help="Folder of the shards.")


def embed(options: EmbedOptions, model_options: ModelOptions, image_options: ImageOptions) -> Path | None:
    """Embed a folder of images, and boxes in them, as Parquet shards.

    Start it with `accelerate launch -m geoalign_hf embed ...` to use several GPUs. A run that was interrupted
    continues when the same command is given again.
    """
    # A process that has ended waits for the others, which may take hours.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=30))])
    check_processes(accelerator.num_processes)
    if not accelerator.is_main_process:
        logging.disable_progress_bar()
    output_dir, embedder = Path(options.output_dir), model_options.load(image_options)
    job = EmbeddingJob(  # every process makes the same list of images
        images=Path(options.images),
        output=output_dir,
        coco=Path(options.coco) if options.coco else None,
        region_source=options.region_source,
        shard_size=options.shard_size,
        dtype=options.dtype,
        on_error=options.on_error,
    )
    num_shards, num_skipped = run_job(job, embedder, model_options.model, accelerator)
    print(
        f"process {accelerator.process_index} of {accelerator.num_processes}: wrote {num_shards} of "
        f"{job.num_shards} shards, skipped {num_skipped} of its images"
    )
    if not accelerator.is_main_process:
        return None
    print(f"{len(job.rows)} images in all, skipped {len(job.report.entries)} annotations")
    return output_dir
