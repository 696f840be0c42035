"""Atomic writes and locks."""

import os
import signal

import pytest

from geoalign_hf.storage import (
    LOCK_NAME,
    atomic_file,
    atomic_folder,
    lock_folder,
    read_json,
    read_text,
    write_json,
    write_text,
)


def test_an_interrupted_write_leaves_the_old_file_and_the_next_write_leaves_no_rest(tmp_path):
    path = tmp_path / "scores.json"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["scores.json"]


def test_an_interrupted_folder_leaves_the_old_one(tmp_path):
    folder = tmp_path / "final"
    with atomic_folder(folder) as new:
        (new / "a").mkdir()
        (new / "a" / "weights").write_text("old")
    with pytest.raises(RuntimeError, match="disk"), atomic_folder(folder) as new:
        (new / "weights").write_text("half")
        raise RuntimeError("disk full")
    assert (folder / "a" / "weights").read_text() == "old" and os.listdir(tmp_path) == ["final"]
    with atomic_folder(folder) as new:
        (new / "weights").write_text("new")
    assert os.listdir(folder) == ["weights"] and os.listdir(tmp_path) == ["final"]


def test_a_folder_survives_a_process_that_is_killed_while_replacing_it(tmp_path):
    folder = tmp_path / "final"
    with atomic_folder(folder) as new:
        (new / "weights").write_text("old")
    folder.rename(tmp_path / ".final.old.partial")  # where a kill between the two renames leaves it
    with pytest.raises(RuntimeError), atomic_folder(folder) as new:
        raise RuntimeError
    assert (folder / "weights").read_text() == "old" and os.listdir(tmp_path) == ["final"]


def test_a_read_only_folder_needs_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with lock_folder(tmp_path):
        assert os.listdir(tmp_path) == []


def test_a_second_process_cannot_lock_a_folder_and_learns_who_holds_it(tmp_path):
    holder = os.getpid()

    def lock_elsewhere() -> int:
        child = os.fork()
        if child == 0:
            try:
                with lock_folder(tmp_path):
                    os._exit(0)
            except RuntimeError as error:
                os._exit(1 if f"in use by process {holder}" in str(error) else 2)
            os._exit(3)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with lock_folder(tmp_path):
        assert lock_elsewhere() == 1
    assert lock_elsewhere() == 0


def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_holder(tmp_path):
    """A worker of a data loader lives on for some seconds after its parent."""
    reading, writing = os.pipe()
    holder = os.fork()
    if holder == 0:
        with lock_folder(tmp_path):
            worker = os.fork()
            if worker != 0:
                os.write(writing, b"%d" % worker)
            signal.pause()
    worker = int(os.read(reading, 20))
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    try:
        with lock_folder(tmp_path):
            assert (tmp_path / LOCK_NAME).read_text() == str(os.getpid())
    finally:
        os.kill(worker, signal.SIGKILL)


def test_invalid_json_is_refused_with_the_name_of_the_file(tmp_path):
    path = tmp_path / "a.json"
    deep = "[" * 100_000
    for text, expected in (("{", "is not valid JSON"), (deep, "is not valid JSON"), ("[1]", "holds a list")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"a.json {expected}"):
            read_json(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="a.json is not UTF-8"):
        read_text(path)
    with pytest.raises(ValueError):
        write_json(path, {"score": float("nan")})
