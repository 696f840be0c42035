"""Laws of checkpoints: complete or absent, checked before use, and never unpickled."""

import copy
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from refusals import refuses
from runs import build_trainer
from safetensors.torch import load_file
from transformers import TrainerCallback

from geoalign_hf.data.augmentation import Augmentation
from geoalign_hf.storage import lock_folder
from geoalign_hf.training.checkpoints import (
    MANIFEST,
    check_checkpoint,
    find_newest_checkpoint,
    load_tree,
    prepare_output,
    remove_folder,
    resolve_checkpoint,
    save_tree,
    write_folder,
    write_manifest,
)

ALONE = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)


def list_names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check_equal_files(first, second) -> None:
    left, right = load_file(first), load_file(second)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


# Folders


def test_what_fails_on_the_way_leaves_nothing_and_names_the_newest_checkpoint(tmp_path):
    (tmp_path / "checkpoint-10").mkdir()
    facts = (str(tmp_path / "checkpoint-20"), "the disk is full", str(tmp_path / "checkpoint-10"))
    with refuses(*facts, kind=RuntimeError), write_folder(ALONE, tmp_path / "checkpoint-20"):
        raise OSError("the disk is full")
    assert list_names(tmp_path) == ["checkpoint-10"]


def test_the_newest_checkpoint_is_the_one_with_the_most_steps(tmp_path):
    assert find_newest_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", ".checkpoint-11.partial", "checkpoint-x", "best"):
        (tmp_path / name).mkdir()
    assert find_newest_checkpoint(tmp_path).name == "checkpoint-10"


def test_only_our_own_unfinished_folders_are_removed(tmp_path):
    ours = [".checkpoint-7.partial", ".checkpoint-7.old.partial", ".best.partial"]
    theirs = ["partial-work", ".notes.partial", ".checkpoint-x.partial", "mine"]
    for name in ours + theirs:
        (tmp_path / name).mkdir()
    prepare_output(tmp_path, is_resumed=False, overwrite=False)
    assert list_names(tmp_path) == sorted(theirs)


def test_removing_a_folder_removes_its_name_first(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-1").mkdir()

    def die(path, ignore_errors=False):
        if not ignore_errors:
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(tmp_path / "checkpoint-1")
    assert find_newest_checkpoint(tmp_path) is None


def test_a_folder_that_another_run_uses_is_refused_with_its_process(model, processor, rows, tmp_path):
    trainer = build_trainer(model, processor, rows, tmp_path)
    with lock_folder(tmp_path), refuses(str(os.getpid()), str(tmp_path), kind=RuntimeError):
        trainer.train()


# Trees


def test_a_tree_comes_back_with_equal_bits(tmp_path):
    tree = {
        "tensors": [torch.arange(3), torch.tensor(1.5, dtype=torch.bfloat16), torch.zeros(0, 2)],
        "plain": {"none": None, "flag": True, "number": 0.1, "words": "a/b", "list": [1, [2]]},
        "rng": random.getstate()[1],
    }
    save_tree(tree, tmp_path / "tree.safetensors")
    loaded = load_tree(tmp_path / "tree.safetensors")
    assert loaded["plain"] == tree["plain"] and tuple(loaded["rng"]) == tree["rng"]
    for found, expected in zip(loaded["tensors"], tree["tensors"], strict=True):
        assert torch.equal(found, expected) and found.dtype == expected.dtype


def test_what_would_need_pickle_is_not_saved(tmp_path):
    with refuses("/object", "SimpleNamespace", "pickle", kind=TypeError):
        save_tree({"object": ALONE}, tmp_path / "tree.safetensors")


# Resuming from what is not complete


@pytest.fixture(scope="module")
def finished(built, processor, rows, tmp_path_factory):
    """A run of four steps with a checkpoint after each, an average and a teacher."""
    path = tmp_path_factory.mktemp("finished")
    options = {
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 9,
        "teacher": "ema",
        "ema_decay": 0.9,
    }
    build_trainer(copy.deepcopy(built[0]), processor, rows, path, **options).train()
    return path


@pytest.fixture
def run(finished, tmp_path):
    """A copy of its last two checkpoints, which a test may damage."""
    for step in (3, 4):
        shutil.copytree(finished / f"checkpoint-{step}", tmp_path / "run" / f"checkpoint-{step}")
    return tmp_path / "run"


def list_parts(run) -> list[str]:
    return [*json.loads((run / "checkpoint-4" / MANIFEST).read_text())["files"], MANIFEST]


def test_the_manifest_lists_every_part_that_a_resumed_run_reads(run):
    parts = {"optimizer", "scheduler", "random-0", "teacher", "average", "weights"}
    expected = {f"state/{part}.safetensors" for part in parts} | {"state/run.json", MANIFEST}
    assert set(list_parts(run)) == expected | {"model.safetensors", "trainer_state.json"}


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "changed"])
def test_every_damaged_part_is_named_with_the_older_complete_checkpoint(run, damage):
    for part in list_parts(run):
        path = run / "checkpoint-4" / part
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            changed = bytes([content[0] ^ 1]) + content[1:]
            path.write_bytes({"cut": content[:-1], "empty": b"", "changed": changed}[damage])
        with refuses(str(run / "checkpoint-4"), part, str(run / "checkpoint-3")):
            resolve_checkpoint(run, "last")
        path.write_bytes(content)
    check_checkpoint(run / "checkpoint-4")


def test_a_folder_of_something_else_is_not_resumed(run, tmp_path):
    (run / "checkpoint-9").mkdir()
    with refuses("checkpoint-9", MANIFEST, "checkpoint-4"):
        resolve_checkpoint(run, True)
    with refuses("no folder"):
        resolve_checkpoint(run, str(tmp_path / "nowhere"))
    assert resolve_checkpoint(run, None) is None
    assert resolve_checkpoint(tmp_path, "last") is None


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_live_pickles_in_any_file_of_a_checkpoint_are_never_run(built, processor, rows, run, tmp_path):
    checkpoint, fired = run / "checkpoint-3", tmp_path / "fired"
    legacy = ["optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "training_args.bin"]
    legacy += ["pytorch_model.bin", "adapter_model.bin", "optimizer.bin", "state/optimizer.pt"]
    original = {name: (checkpoint / name).read_bytes() for name in list_parts(run)}

    def resume():
        options = {"num_train_epochs": 2, "save_strategy": "no", "teacher": "ema", "ema_decay": 0.9}
        trainer = build_trainer(copy.deepcopy(built[0]), processor, rows, run, **options)
        trainer.train(resume_from_checkpoint=str(checkpoint))

    torch.save(Payload(str(fired)), tmp_path / "payload.pt")
    for payload in (pickle.dumps(Payload(str(fired))), (tmp_path / "payload.pt").read_bytes()):
        for name in legacy:
            (checkpoint / name).write_bytes(payload)
        resume()  # files that are not ours are not read
        for part in original:
            (checkpoint / part).write_bytes(payload)
            with refuses(part):
                resume()
            if part != MANIFEST:  # an attacker can also write the manifest
                write_manifest(checkpoint)
                with suppress(Exception):
                    resume()
            assert not fired.exists(), part
            for name, content in original.items():
                (checkpoint / name).write_bytes(content)


def test_resuming_without_a_checkpoint_says_that_it_starts_anew(model, processor, rows, tmp_path, caplog):
    trainer = build_trainer(model, processor, rows, tmp_path, num_train_epochs=1)
    trainer.train(resume_from_checkpoint="last")
    assert "holds no checkpoint" in caplog.text and trainer.state.global_step == 2


# Interruptions


@pytest.mark.parametrize(
    ("number", "at_step"),
    [
        pytest.param(signal.SIGINT, 3, marks=pytest.mark.slow),
        (signal.SIGTERM, 3),
        pytest.param(signal.SIGTERM, 4, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_a_checkpoint_that_resumes_with_the_same_bits(
    built, processor, rows, tmp_path, number, at_step
):
    """The signal comes in the middle of an epoch, or at its last step, which still is evaluated."""
    interrupted = []

    def start(folder, **options):
        def count(model):
            if trainer.state.global_step == at_step - 1 and trainer.model.training and folder.name == "b":
                interrupted.append(1)
                os.kill(os.getpid(), number) if len(interrupted) == 1 else None

        evaluator = WeightEvaluator()
        trainer = build_trainer(
            copy.deepcopy(built[0]), processor, rows, folder, num_train_epochs=3, evaluators=[evaluator],
            augmentation=Augmentation(), ema_decay=0.5, **options,
        )  # fmt: skip
        trainer.model.register_forward_pre_hook(lambda module, inputs: count(module))
        return trainer

    start(tmp_path / "a").train()
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as caught:
        start(tmp_path / "b").train()
    assert caught.value.code == 128 + number
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert find_newest_checkpoint(tmp_path / "b").name == f"checkpoint-{at_step}"
    assert not (tmp_path / "b" / "final").exists()
    start(tmp_path / "b", resume_from_checkpoint="last").train()
    for name in ("final", "best"):
        check_equal_files(*(tmp_path / run / name / "model.safetensors" for run in "ab"))
    left, right = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in "ab")
    assert left == right


class SignalAtEpochEnd(TrainerCallback):
    """Sends a signal between the last step of an epoch and its evaluation."""

    def on_epoch_end(self, args, state, control, **kwargs):
        if state.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_signal_after_the_last_step_of_an_epoch_keeps_its_evaluation(built, processor, rows, tmp_path):
    def start(folder, **options):
        return build_trainer(
            copy.deepcopy(built[0]), processor, rows, folder, evaluators=[WeightEvaluator()], **options
        )

    whole = start(tmp_path / "a")
    whole.train()
    with pytest.raises(SystemExit):
        start(tmp_path / "b", callbacks=[SignalAtEpochEnd()]).train()
    resumed = start(tmp_path / "b", resume_from_checkpoint="last")
    resumed.train()
    found, expected = (
        [
            (entry["step"], entry["eval_scale_score"])
            for entry in each.state.log_history
            if "eval_scale_score" in entry
        ]
        for each in (resumed, whole)
    )
    assert found == expected and resumed.scores == whole.scores
    check_equal_files(*(tmp_path / run / "best" / "model.safetensors" for run in "ab"))


class WeightEvaluator:
    """Scores the weights themselves."""

    name, primary_metric, greater_is_better = "scale", "score", True

    def __call__(self, embedder) -> dict:
        return {"score": embedder.model.visual_projection.weight.sum().item(), "protocol": {}}


def fork(function) -> int:
    """Run a function in a child process that starts with all that is imported here; return its id."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        function()
        os._exit(0)
    except BaseException as error:
        if hasattr(function, "report"):
            function.report.write_text(f"{type(error).__name__}: {error}")
        os._exit(1)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_a_full_disk_is_a_clear_error_and_damages_no_checkpoint(model, processor, rows, tmp_path):
    """No file may grow beyond 200 kB, which the weights do. The limit ends with the child process."""
    options = {"num_train_epochs": 1, "save_strategy": "steps", "save_steps": 1}
    build_trainer(copy.deepcopy(model), processor, rows, tmp_path, **options).train()
    shutil.rmtree(tmp_path / "checkpoint-2")

    def run():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        build_trainer(model, processor, rows, tmp_path, **options, resume_from_checkpoint="last").train()

    run.report = tmp_path / "report"
    assert wait(fork(run)) == 1
    found = run.report.read_text()
    assert found.startswith(f"RuntimeError: {tmp_path / 'checkpoint-2'} cannot be written (")
    assert str(tmp_path / "checkpoint-1") in found
    assert not any(tmp_path.glob(".*.partial"))
    check_checkpoint(tmp_path / "checkpoint-1")


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_bits_of_one_that_was_not(
    built, processor, rows, tmp_path
):
    """Also during the writing of checkpoints, of `best` and of the end."""

    def run(folder):
        build_trainer(
            copy.deepcopy(built[0]), processor, rows, folder, num_train_epochs=20,
            save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=2,
            augmentation=Augmentation(), evaluators=[WeightEvaluator()],
            ema_decay=0.9, resume_from_checkpoint="last",
        ).train()  # fmt: skip

    start = time.perf_counter()
    assert wait(fork(lambda: run(tmp_path / "whole"))) == 0
    duration = time.perf_counter() - start
    generator = random.Random(0)
    folder, num_kills, found_partial = tmp_path / "killed", 0, 0
    while num_kills < 24:
        child = fork(lambda: run(folder))
        end = time.perf_counter() + generator.uniform(0.05, 0.12) * duration
        while time.perf_counter() < end or (num_kills < 4 and not any(folder.glob(".*.partial"))):
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break  # it came to its end
            time.sleep(0.001)  # the first kills wait for a folder that is being written
        if os.waitpid(child, os.WNOHANG)[0]:  # it came to its end before: once more from the start
            shutil.rmtree(folder)
            continue
        os.kill(child, signal.SIGKILL)
        assert wait(child) == -signal.SIGKILL
        num_kills += 1
        found_partial += any(folder.glob(".*.partial"))
    assert wait(fork(lambda: run(folder))) == 0
    assert found_partial > 0  # some kills fell into the writing of a folder
    for name in ("final", "best"):
        check_equal_files(*(path / name / "model.safetensors" for path in (tmp_path / "whole", folder)))
    assert not any(folder.glob(".*.partial"))


@pytest.mark.parametrize(
    "content",
    ["", "null", "[]", "{}", '{"files": []}', '{"files": null}', '{"files": 5}', '{"files": "state"}',
     '{"files": {}}', '{"files": {"a": null}}', '{"files": {"\\u0000": {}}}', "[" * 100_000, "<html>"],
    ids=lambda content: content[:20],
)  # fmt: skip
def test_a_manifest_of_another_form_makes_a_checkpoint_incomplete(tmp_path, content):
    folder = tmp_path / "checkpoint-5"
    (folder / MANIFEST).parent.mkdir(parents=True)
    (folder / MANIFEST).write_text(content)
    with refuses("checkpoint-5", "not complete"):
        check_checkpoint(folder)
