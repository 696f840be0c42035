"""Checkpoints: folders that are whole or not there, found again, and no more of them than asked for.

A folder is written under a temporary name and gets its own when everything in it is. Each holds the model as
`from_pretrained` loads it, its processor and the code that ships with both; a checkpoint also the `state`
that a run goes on from.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..hub.cards import write_card
from ..storage import no_progress_bars

PARTIAL = "partial-"


@contextmanager
def write_whole(accelerator, folder: Path) -> Iterator[Path]:
    """Give a temporary folder to write into; it becomes `folder`, in place of an older one, when all is well.

    Raises:
        RuntimeError: if something could not be written; what had been written of it is removed.
    """
    partial = folder.with_name(PARTIAL + folder.name)
    try:
        if accelerator.is_main_process:
            remove_folder(partial)
            partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        with no_progress_bars():
            yield partial
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            old = _set_aside(folder)
            partial.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        accelerator.wait_for_everyone()
    except Exception as error:
        if not accelerator.is_main_process:
            raise
        shutil.rmtree(partial, ignore_errors=True)
        newest = find_newest_checkpoint(folder.parent)
        raise RuntimeError(
            f"{folder} could not be written ({type(error).__name__}: {error}). Free space on the disk or "
            f"give another output_dir; the newest whole checkpoint is {newest or 'none'}."
        ) from error


def save_model(
    accelerator, model, processor, folder: Path, settings: dict, metrics: dict | None = None
) -> None:
    """Save weights, code, processor and card: a folder that can be loaded and published as it is."""
    # Every process takes part in collecting weights that are sharded over them.
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        if "logit_scale" in state:
            state["logit_scale"] = state["logit_scale"].reshape(())  # as in CLIP, see `prepare_for_fsdp`
        accelerator.unwrap_model(model).save_pretrained(folder, state_dict=state)
        processor.save_pretrained(folder)
        write_card(folder, metrics or {}, settings)


def save_checkpoint(
    accelerator, model, processor, output_dir: Path, settings: dict, step: int, keep: int
) -> Path:
    """Write the checkpoint of a step, then drop the oldest beyond `keep`; give its folder."""
    with write_whole(accelerator, output_dir / f"checkpoint-{step}") as folder:
        accelerator.save_state(folder / "state")
        save_model(accelerator, model, processor, folder, settings)
    if accelerator.is_main_process:
        for old in list_checkpoints(output_dir)[:-keep]:
            remove_folder(old)
    return output_dir / f"checkpoint-{step}"


def find_newest_checkpoint(output_dir: Path) -> Path | None:
    """Find the whole checkpoint with the most steps."""
    return next(reversed(list_checkpoints(output_dir)), None)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """List the whole checkpoints, the newest last."""
    prefix = "checkpoint-"
    folders = [path for path in Path(output_dir).glob(f"{prefix}*") if path.name[len(prefix) :].isdigit()]
    return sorted(folders, key=lambda path: int(path.name[len(prefix) :]))


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there, so that even half removed it is never taken for a whole one."""
    aside = folder if folder.name.startswith(PARTIAL) else _set_aside(folder)
    if aside.exists():
        shutil.rmtree(aside)


def _set_aside(folder: Path) -> Path:
    """Give a folder, if it is there, a name that says it is on its way out."""
    aside = folder.with_name(f"{PARTIAL}old-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
    return aside


def remove_partial_folders(output_dir: Path) -> None:
    """Clear away what killed runs left unfinished."""
    for folder in Path(output_dir).glob(f"{PARTIAL}*"):
        remove_folder(folder)
