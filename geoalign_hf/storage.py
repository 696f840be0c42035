"""Atomic writes, folder locks, and readers of text and JSON with clear error messages."""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

LOCK_NAME = ".geoalign.lock"
_locks: set[IO] = set()  # the open files of the locks that this process holds
PARTIAL = ".partial"


def name_partial(path: Path) -> Path:
    """Name the hidden file or folder in which `path` is written before it is complete."""
    return path.with_name(f".{path.name}{PARTIAL}")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under its own name only when it is complete.

    The content is on the disk before the file gets its name, so that a power cut cannot leave a truncated
    file. The next write replaces the hidden file that an interrupted write has left.

    Args:
        path: Path of the file. Its folder must exist.

    Yields:
        A binary file to write to.
    """
    path = Path(path)
    partial = name_partial(path)
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Create a new folder to write into that replaces `folder` only when everything in it is complete.

    Args:
        folder: The final path. A folder that already has this path is kept until the new one is complete.

    Yields:
        An empty, hidden folder beside it. It is removed if the block raises.
    """
    folder = Path(folder)
    partial, old = name_partial(folder), name_partial(folder.with_name(f"{folder.name}.old"))
    if old.exists() and not folder.exists():  # a process was killed between the two renames below
        old.rename(folder)
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            else:
                sync_folder(path)
        sync_folder(partial)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Write a folder's list of file names to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Lock a folder, so that a second job cannot write into it at the same time.

    The operating system releases the lock when the process ends, however it ends. A folder that this process
    may not write to needs no lock and gets none.

    Args:
        folder: The folder. It is created if it does not exist.

    Raises:
        RuntimeError: If another process holds the lock. The message names that process.
    """
    path = Path(folder) / LOCK_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        yield
        return
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RuntimeError(
                f"{folder} is in use by process {file.read().strip() or 'unknown'}. "
                "Wait until it has ended, or give another folder."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _locks.add(file)
        try:
            yield  # The file stays: two processes could each lock a file of this name if it were removed.
        finally:
            _locks.discard(file)


def _close_locks() -> None:
    """Close the locks in a forked process, such as a data worker: it may outlive its parent, the holder."""
    while _locks:
        _locks.pop().close()


os.register_at_fork(after_in_child=_close_locks)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch off the progress bars of transformers and datasets while another bar is shown."""
    # Importing either takes seconds, so only if it is imported already.
    logging, datasets = sys.modules.get("transformers.utils.logging"), sys.modules.get("datasets")
    was_enabled = logging is not None and logging.is_progress_bar_enabled()
    if was_enabled:
        logging.disable_progress_bar()
    were_enabled = datasets is not None and not datasets.are_progress_bars_disabled()
    if were_enabled:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
        if were_enabled:
            datasets.enable_progress_bars()


def check_output_file(path: str | Path) -> None:
    """Refuse a folder as the name of a file to write, before the work that the file is for."""
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder, and the output is a file. Give the name of a file in it.")


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        ValueError: If the file is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error


def read_json(path: str | Path) -> dict:
    """Read a JSON file that holds one object.

    Raises:
        ValueError: If the file is not JSON, or does not hold an object.
    """
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Replace the file.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a JSON object.")
    return content


def write_json(path: str | Path, content: dict) -> None:
    """Write an indented JSON file atomically.

    Raises:
        ValueError: If a number in it is NaN or infinite.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False))


def list_weight_files(folder: str | Path, must_exist: bool = True) -> list[Path]:
    """List the files of the weights of a saved model: those that its index names, or else the only one.

    Args:
        folder: Folder of the model.
        must_exist: Whether to refuse an index that names missing files.

    Raises:
        ValueError: If the index is not one, or names a file that is missing or outside the folder.
    """
    index = Path(folder) / "model.safetensors.index.json"
    if not index.exists():
        return [Path(folder) / "model.safetensors"]
    names: Any = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index} has the weight_map {names!r:.80}; expected a file for each weight.")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names {name!r:.100}; expected .safetensors files beside it.")
    files = sorted(set(names.values()))
    missing = [name for name in files if not (Path(folder) / name).is_file()]
    if must_exist and missing:
        raise ValueError(f"{index} names {missing}, which are missing beside it. Save the model again.")
    return [Path(folder) / name for name in files]
