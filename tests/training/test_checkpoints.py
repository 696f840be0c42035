"""Laws of checkpoints: a folder is whole or not there, whatever ends the process that writes it."""

import copy
import os
import random
import re
import resource
import signal
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from geoalign_hf.data.augmentation import Augmentation
from geoalign_hf.training.arguments import TrainingConfig
from geoalign_hf.training.checkpoints import (
    find_newest_checkpoint,
    remove_folder,
    remove_partial_folders,
    save_model,
    write_whole,
)
from geoalign_hf.training.trainer import train

ALONE = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)


def list_names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_has_its_name_when_all_of_it_is_written(tmp_path):
    with write_whole(ALONE, tmp_path / "whole") as folder:
        (folder / "file").write_text("new")
        assert list_names(tmp_path) == ["partial-whole"]
    assert list_names(tmp_path) == ["whole"]
    with write_whole(ALONE, tmp_path / "whole") as folder:
        assert list_names(folder) == []
        (folder / "file").write_text("newer")
    assert (tmp_path / "whole" / "file").read_text() == "newer"


def test_what_fails_on_the_way_leaves_nothing_and_says_why(tmp_path):
    (tmp_path / "checkpoint-10").mkdir()
    message = (
        f"{tmp_path / 'checkpoint-20'} could not be written (OSError: the disk is full). Free space on the "
        f"disk or give another output_dir; the newest whole checkpoint is {tmp_path / 'checkpoint-10'}."
    )
    with (
        pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"),
        write_whole(ALONE, tmp_path / "checkpoint-20"),
    ):
        raise OSError("the disk is full")
    assert list_names(tmp_path) == ["checkpoint-10"]


def test_the_newest_is_the_one_with_the_most_steps_and_partial_ones_do_not_count(tmp_path):
    assert find_newest_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", "partial-checkpoint-11", "checkpoint-x", "best"):
        (tmp_path / name).mkdir()
    assert find_newest_checkpoint(tmp_path).name == "checkpoint-10"
    remove_partial_folders(tmp_path)
    assert list_names(tmp_path) == ["best", "checkpoint-10", "checkpoint-9", "checkpoint-x"]


def test_removing_a_folder_removes_its_name_first(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-1").mkdir()

    def die(path, ignore_errors=False):
        if not ignore_errors:
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(tmp_path / "checkpoint-1")
    assert find_newest_checkpoint(tmp_path) is None


def test_a_scale_that_was_given_an_axis_is_saved_without(model, processor, tmp_path):
    model.logit_scale = torch.nn.Parameter(model.logit_scale.detach().reshape(1))
    save_model(Accelerator(), model, processor, tmp_path, {})
    assert load_file(tmp_path / "model.safetensors")["logit_scale"].shape == ()


def fork(function) -> int:
    """Run a function in a child process that starts with all that is imported here; give its id."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        function()
        os._exit(0)
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"
        if hasattr(function, "report"):
            function.report.write_text(message)
        os._exit(1)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_full_disk_is_a_clear_error_and_spoils_no_checkpoint(model, processor, rows, tmp_path):
    """No file may grow beyond 200 kB, which the weights do; the limit ends with the child process."""
    config = TrainingConfig(output_dir=str(tmp_path), num_epochs=1, batch_size=4, save_every=1)
    train(copy.deepcopy(model), processor, rows, config=config)
    remove_folder(tmp_path / "final")
    before = load_file(tmp_path / "checkpoint-1" / "model.safetensors")

    def run():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        train(model, processor, rows, config=replace(config, resume=True))

    run.report = tmp_path / "report"
    assert wait(fork(run)) == 1
    found = run.report.read_text()
    assert found.startswith(f"RuntimeError: {tmp_path / 'final'} could not be written (")
    assert found.endswith(f"the newest whole checkpoint is {tmp_path / 'checkpoint-1'}.")
    assert not any(tmp_path.glob("partial-*"))
    after = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_bits_of_one_that_was_not(
    built, processor, rows, tmp_path
):
    """At least twenty kills, also during the writing of checkpoints, of `best` and of the end."""

    def run(folder):
        config = TrainingConfig(
            output_dir=str(folder), num_epochs=20, batch_size=4, save_every=1, eval_every=2, resume=True,
            best_metric="score",
        )  # fmt: skip
        train(
            copy.deepcopy(built[0]), processor, rows, config=config, augment=Augmentation(),
            evaluate=lambda model: {"score": model.logit_scale.item()},
        )  # fmt: skip

    start = time.perf_counter()
    assert wait(fork(lambda: run(tmp_path / "whole"))) == 0
    duration = time.perf_counter() - start
    generator = random.Random(0)
    folder, num_kills, found_partial = tmp_path / "killed", 0, 0
    while num_kills < 24:
        child = fork(lambda: run(folder))
        time.sleep(generator.uniform(0.05, 0.12) * duration)
        if os.waitpid(child, os.WNOHANG)[0]:  # it came to its end before: once more from the start
            remove_folder(folder)
            continue
        os.kill(child, signal.SIGKILL)
        assert wait(child) == -signal.SIGKILL
        num_kills += 1
        found_partial += any(folder.glob("partial-*"))
    assert wait(fork(lambda: run(folder))) == 0
    assert found_partial > 0  # some kills fell into the writing of a folder
    for name in ("final", "best"):
        left, right = (load_file(path / name / "model.safetensors") for path in (tmp_path / "whole", folder))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    assert not any(folder.glob("partial-*"))
