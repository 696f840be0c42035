"""Laws of resuming: which folders a run may continue or replace, and runs that early stopping ended."""

import os
import signal

import pytest
from peft import PeftModel
from refusals import refuses
from runs import ServedScores, check_equal_weights
from transformers import AutoModel, EarlyStoppingCallback, TrainerCallback

from geoalign_hf.storage import read_json
from geoalign_hf.training.lora import AdapterConfig, adapt_model
from geoalign_hf.training.resumable import ResumableTrainer

SCORES = (0.1, 0.5, 0.9, 0.2, 0.3, 0.95, 0.99)  # the best one is after the second epoch


def list_steps(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_what_is_no_checkpoint_is_refused_with_one_that_is(start, tmp_path):
    start(num_train_epochs=1).train()
    newest = tmp_path / "checkpoint-2"
    for path in (tmp_path, tmp_path / "final", newest / "state", tmp_path / "args.json", tmp_path / "none"):
        with refuses(f"{str(path)!r}", "not a checkpoint", str(newest) if path != newest / "state" else ""):
            start(num_train_epochs=1, resume_from_checkpoint=str(path)).train()


def test_another_run_is_not_overwritten_by_a_run_that_resumes_from_elsewhere(start, tmp_path):
    start(tmp_path / "a", num_train_epochs=1).train()
    start(tmp_path / "b", num_train_epochs=1, seed=1).train()
    before = (tmp_path / "b" / "final" / "model.safetensors").read_bytes()
    elsewhere = {"num_train_epochs": 1, "resume_from_checkpoint": str(tmp_path / "a" / "checkpoint-2")}
    with refuses(str(tmp_path / "b"), "overwrite_output_dir", kind=RuntimeError):
        start(tmp_path / "b", **elsewhere).train()
    assert (tmp_path / "b" / "final" / "model.safetensors").read_bytes() == before
    start(tmp_path / "c", **elsewhere).train()
    check_equal_weights(tmp_path / "a" / "final", tmp_path / "c" / "final")


def test_a_finished_run_without_checkpoints_is_not_begun_anew_by_resuming(start, tmp_path):
    start(num_train_epochs=1, save_strategy="no").train()
    with refuses(str(tmp_path), "another run", kind=RuntimeError):
        start(num_train_epochs=1, save_strategy="no", resume_from_checkpoint="last").train()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("with_adapter", [False, True])
def test_the_model_that_training_starts_from_is_never_removed(start, tmp_path, overwrite, with_adapter):
    start(num_train_epochs=1).train()
    model = AutoModel.from_pretrained(tmp_path / "final")
    model = adapt_model(model, AdapterConfig(lora="text")) if with_adapter else model
    with refuses(str(tmp_path / "final"), "starts from", kind=RuntimeError):
        start(model=model, num_train_epochs=1, overwrite_output_dir=overwrite).train()
    AutoModel.from_pretrained(tmp_path / "final")
    trainer = start(tmp_path / "next", model, num_train_epochs=1)
    trainer.train()
    assert isinstance(trainer.model, PeftModel) == with_adapter


@pytest.mark.parametrize("form", ["torch", "numpy"])
def test_rows_with_a_format_are_refused_by_its_name(start, rows, form):
    with refuses(form, "with_format(None)"):
        start(train_rows=rows.with_format(form))


def test_another_metric_of_the_best_model_is_refused(start):
    first = start(evaluators=[ServedScores(*SCORES)])
    first.train()
    with refuses("metric_for_best_model", "served_other"):
        start(
            evaluators=[ServedScores(*SCORES)],
            metric_for_best_model="served_other",
            resume_from_checkpoint="last",
        ).train()
    with refuses("greater_is_better"):
        start(
            evaluators=[ServedScores(*SCORES)], greater_is_better=False, resume_from_checkpoint="last"
        ).train()


@pytest.mark.parametrize(("eval_strategy", "step"), [("steps", 3), ("epoch", 4)])
def test_a_signal_saves_a_checkpoint_also_if_only_the_best_are_saved(start, tmp_path, eval_strategy, step):
    class Signal(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    options = {"save_strategy": "best", "eval_strategy": eval_strategy, "eval_steps": 1}
    with pytest.raises(SystemExit):
        start(
            evaluators=[ServedScores(*SCORES[::-1])], callbacks=[Signal()], num_train_epochs=3, **options
        ).train()
    assert f"checkpoint-{step}" in list_steps(tmp_path)


def test_a_run_that_early_stopping_ended_does_not_go_on(start, tmp_path, monkeypatch):
    def run(folder, *scores, **options):
        trainer = start(
            folder,
            num_train_epochs=6,
            evaluators=[ServedScores(*scores)],
            load_best_model_at_end=True,
            callbacks=[EarlyStoppingCallback(2)],
            **options,
        )
        trainer.train()
        return trainer

    assert run(tmp_path / "whole", *SCORES).state.global_step == 8
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            ResumableTrainer, "_finish", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        run(tmp_path / "killed", *SCORES)
    assert run(tmp_path / "killed", resume_from_checkpoint="last").state.global_step == 8
    assert list_steps(tmp_path / "killed") == list_steps(tmp_path / "whole")
    for name in ("best", "final"):
        check_equal_weights(tmp_path / "whole" / name, tmp_path / "killed" / name)
    whole, resumed = (read_json(tmp_path / run / "metrics.json") for run in ("whole", "killed"))
    assert whole == resumed
    # Whoever wants more epochs leaves out the callback.
    args = {"num_train_epochs": 6, "evaluators": [ServedScores(*SCORES[5:], 0.0)]}
    longer = start(tmp_path / "killed", **args, load_best_model_at_end=True, resume_from_checkpoint="last")
    longer.train()
    assert longer.state.global_step == 12
