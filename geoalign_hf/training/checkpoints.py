"""Checkpoints: complete folders from which a run resumes, without unpickling anything.

A checkpoint holds the model as `from_pretrained` loads it, `trainer_state.json`, and a folder `state` with
everything else as safetensors and JSON. `state/manifest.json` lists the files that a resumed run reads, with
their sizes and checksums.
"""

import json
import random
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..storage import atomic_folder, list_weight_files, name_partial, no_progress_bars, read_json, write_json

STATE = "state"
MANIFEST = f"{STATE}/manifest.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# What a run leaves in its folder, beside checkpoints, and the hidden names of what it left unfinished.
ARTEFACTS = ("best", "final", "args.json", "metrics.json", "trainer_state.json", "curves.png")
UNFINISHED = re.compile(r"\.(checkpoint-\d+|best|final)(\.old)?\.partial")


@contextmanager
def write_folder(accelerator, folder: Path) -> Iterator[Path]:
    """Give all processes a new folder to write into, which replaces `folder` when everything is complete.

    Raises:
        RuntimeError: if something cannot be written. What was written of the new folder is removed.
    """
    try:
        with atomic_folder(folder) if accelerator.is_main_process else nullcontext():
            accelerator.wait_for_everyone()
            partial = name_partial(folder)
            with no_progress_bars():
                yield partial
            accelerator.wait_for_everyone()
            if accelerator.is_main_process and (partial / STATE).exists():
                write_manifest(partial)
        accelerator.wait_for_everyone()
    except Exception as error:
        if not accelerator.is_main_process:
            raise
        newest = find_newest_checkpoint(folder.parent)
        raise RuntimeError(
            f"{folder} cannot be written ({type(error).__name__}: {error}). Free space on the disk or give "
            f"another output_dir. The newest complete checkpoint is {newest or 'none'}."
        ) from error


def write_manifest(folder: Path) -> None:
    """List what a resumed run reads from a checkpoint."""
    patterns = (f"{STATE}/*", "*.safetensors", "*.safetensors.index.json", "trainer_state.json")
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)} - {folder / MANIFEST})
    files = {str(path.relative_to(folder)): _describe_file(path) for path in paths}
    write_json(folder / MANIFEST, {"files": files})


def _describe_file(path: Path) -> dict[str, int]:
    checksum, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            checksum, size = zlib.crc32(block, checksum), size + len(block)
    return {"size": size, "crc32": checksum}


def find_damage(folder: Path) -> str | None:
    """Describe the first part of a checkpoint that is missing or damaged; None if all parts are complete."""
    try:
        files = read_json(folder / MANIFEST)["files"]
        if not isinstance(files, dict) or not files:
            return f"{MANIFEST} lists no files"
        for name, expected in files.items():
            if (found := _describe_file(folder / name)) != expected:
                return f"{name} is damaged: expected {expected}, found {found}"
    except (OSError, ValueError, KeyError) as error:
        return f"{error.filename if isinstance(error, OSError) else MANIFEST} cannot be read ({error})"
    return None


def check_checkpoint(folder: Path) -> None:
    """Check that every part of a checkpoint is complete.

    Raises:
        ValueError: if a part is missing or damaged. The message names it, and an older complete checkpoint.
    """
    if damage := find_damage(folder):
        older = [path for path in list_checkpoints(folder.parent) if _read_step(path) < _read_step(folder)]
        complete = next((path for path in reversed(older) if find_damage(path) is None), None)
        advice = f"resume_from_checkpoint {complete}" if complete else "a new run; no older one is complete"
        raise ValueError(f"the checkpoint {folder} is not complete: {damage}. Continue with {advice}.")


def list_checkpoints(output_dir: Path) -> list[Path]:
    """List the checkpoint folders of a run, the newest last."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name)]
    return sorted(folders, key=_read_step)


def _read_step(folder: Path) -> int:
    match = CHECKPOINT.fullmatch(folder.name)
    return int(match.group(1)) if match else -1


def find_newest_checkpoint(output_dir: Path) -> Path | None:
    """Find the checkpoint with the most steps."""
    return next(reversed(list_checkpoints(output_dir)), None)


def resolve_checkpoint(output_dir: Path, resume: str | bool | None) -> Path | None:
    """Find the checkpoint to resume from, and check that it is complete.

    Args:
        output_dir: folder of the run.
        resume: a checkpoint folder; True or `last` for the newest in `output_dir`; None or False for none.

    Returns:
        The folder; None if the run starts with its first step.

    Raises:
        ValueError: if the folder is not a checkpoint, or is not complete.
    """
    if not resume:
        return None
    if resume is True or resume == "last":
        folder = find_newest_checkpoint(output_dir)
    else:
        folder = Path(resume)
        if not (folder / STATE).is_dir():
            near = find_newest_checkpoint(folder) or find_newest_checkpoint(folder.parent)
            raise ValueError(
                f"resume_from_checkpoint is {str(resume)!r}, which is not a checkpoint of GeoAlignTrainer: "
                f"it has no folder {STATE!r}. Give {near or 'the folder checkpoint-* of a run'}."
            )
    if folder is not None:
        check_checkpoint(folder)
    return folder


def prepare_output(output_dir: Path, is_resumed: bool, overwrite: bool, start: str = "") -> None:
    """Create the folder of a run, and remove what killed runs left unfinished in it.

    Args:
        output_dir: folder of the run.
        is_resumed: True if the run continues another one.
        overwrite: True removes the results of another run.
        start: folder of the model that training starts from, if it is a folder.

    Raises:
        RuntimeError: if it cannot be written, holds results of a run that is neither resumed nor
            overwritten, or holds the model that training starts from.
    """
    check_writable(output_dir)
    for path in output_dir.iterdir():
        if UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path)
    left = [output_dir / name for name in ARTEFACTS if (output_dir / name).exists()]
    left += list_checkpoints(output_dir)
    if left and not is_resumed:
        if start and any(Path(start).resolve().is_relative_to(path.resolve()) for path in left):
            raise RuntimeError(
                f"output_dir {output_dir} holds {start}, the model that training starts from. Give another "
                "output_dir."
            )
        if not overwrite:
            raise RuntimeError(
                f"output_dir {output_dir} holds {left[-1].name} of another run. Continue that run with "
                "resume_from_checkpoint 'last', give another output_dir, or remove it with "
                "overwrite_output_dir."
            )
        for path in left:
            remove_folder(path) if path.is_dir() else path.unlink()


def check_writable(folder: str | Path) -> None:
    """Create a folder if it does not exist, and check that it can be written.

    Raises:
        RuntimeError: if it cannot.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RuntimeError(f"output_dir {folder} cannot be written ({error}). Give another.") from error


def remove_folder(folder: Path) -> None:
    """Remove a folder. It is renamed first, so that a partly removed folder never looks complete."""
    hidden = name_partial(folder.with_name(f"{folder.name}.old"))
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def save_tree(tree: dict, path: Path) -> None:
    """Save nested dictionaries and lists of tensors, arrays and plain values as one safetensors file.

    Raises:
        TypeError: if a value would need pickle.
    """
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _take_out_tensors(tree, tensors, "")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"tree": json.dumps(skeleton)})


def _take_out_tensors(value, tensors: dict[str, torch.Tensor], name: str):
    """Return a value for JSON, in which each tensor is replaced by its key."""
    if isinstance(value, np.ndarray):
        return {"array": _take_out_tensors(torch.from_numpy(value), tensors, name)}
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        items = {key: _take_out_tensors(item, tensors, f"{name}/{key}") for key, item in value.items()}
        if not all(isinstance(key, str) for key in items):
            raise TypeError(f"{name} has keys that are not strings, so it cannot be saved as JSON.")
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        return [_take_out_tensors(item, tensors, f"{name}/{i}") for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which cannot be saved without pickle.")


def load_tree(path: Path) -> dict:
    """Load what `save_tree` saved. Tuples come back as lists.

    Raises:
        ValueError: if it is not such a file.
    """
    try:
        with safe_open(path, "pt") as file:
            return _put_in_tensors(json.loads((file.metadata() or {})["tree"]), file)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Resume from another checkpoint.") from error


def _put_in_tensors(value, file):
    if isinstance(value, list):
        return [_put_in_tensors(item, file) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return file.get_tensor(value["tensor"])
    if "array" in value:
        return _put_in_tensors(value["array"], file).numpy()
    return {key: _put_in_tensors(item, file) for key, item in value["dict"].items()}


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a saved model, or those that a checkpoint keeps beside it."""
    own = folder / STATE / "weights.safetensors"
    files = [own] if own.exists() else list_weight_files(folder)
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def get_random_state() -> dict:
    """Return the state of every global random generator of this process."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict) -> None:
    """Restore the state of every global random generator of this process."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
