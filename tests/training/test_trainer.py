"""The Accelerate loop: step, log, evaluate, save, resume, and what stops it."""

import copy
import json
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel

from geoalign_hf.data.augmentation import Augmentation
from geoalign_hf.data.collator import RowCollator
from geoalign_hf.data.loading import from_coco
from geoalign_hf.data.training_dataset import EpochSampler
from geoalign_hf.evaluation.classification import RegionClassificationEvaluator
from geoalign_hf.losses.objective import PRESETS, LossWeights, compute_losses
from geoalign_hf.training.arguments import TrainingConfig
from geoalign_hf.training.checkpoints import find_newest_checkpoint
from geoalign_hf.training.history import read_records
from geoalign_hf.training.step import encode_batch
from geoalign_hf.training.trainer import train


def configure(path, **changes) -> TrainingConfig:
    return TrainingConfig(output_dir=str(path), **{"num_epochs": 2, "batch_size": 4} | changes)


def check_equal_weights(first, second) -> None:
    left, right = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_training_lowers_the_loss_and_leaves_a_folder_that_loads(model, processor, rows, tmp_path):
    batch = RowCollator(processor, 6)([rows[i] for i in range(8)])
    weights = LossWeights(crop_consistency=0.0)

    def measure(trained):
        with torch.no_grad():
            output = SimpleNamespace(**encode_batch(trained.eval(), batch))
            return compute_losses(output, batch, weights)["loss"].item()

    before = measure(model)
    folder = train(model, processor, rows, config=configure(tmp_path, num_epochs=15, learning_rate=1e-3))
    assert measure(model) < 0.7 * before
    assert measure(AutoModel.from_pretrained(folder)) == measure(model)


@pytest.mark.parametrize("changes", [{}, {"chunk_size": 1}, {"teacher": "ema", "teacher_decay": 0.5}])
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(
    built, processor, rows, tmp_path, changes
):
    changes = {"num_epochs": 3, "save_every": 1, "keep_checkpoints": 10, **changes}

    def run(folder, **more):
        config = configure(folder, **changes | more)
        return train(copy.deepcopy(built[0]), processor, rows, config=config, augment=Augmentation())

    whole = run(tmp_path / "a")
    torch.manual_seed(99)  # another process would start from another state
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "checkpoint-3").rename(tmp_path / "b" / "checkpoint-3")
    check_equal_weights(whole, run(tmp_path / "b", resume=True, num_workers=2))
    steps = [record["step"] for record in read_records(tmp_path / "b" / "history.jsonl")]
    assert steps == [4, 5, 6]


def test_every_checkpoint_is_a_whole_model_and_only_the_newest_are_kept(model, processor, rows, tmp_path):
    train(model, processor, rows, config=configure(tmp_path, num_epochs=3, save_every=1, keep_checkpoints=2))
    kept = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert kept == ["checkpoint-4", "checkpoint-5", "final"]
    for name in kept:
        assert AutoModel.from_pretrained(tmp_path / name).config.model_type == "geoalign_clip"
    assert find_newest_checkpoint(tmp_path).name == "checkpoint-5"


def test_arguments_are_written_beside_the_model(model, processor, rows, tmp_path):
    weights = LossWeights(scene=0.25)
    train(model, processor, rows, weights, configure(tmp_path, num_epochs=1), Augmentation(turn=False))
    arguments = json.loads((tmp_path / "args.json").read_text())
    assert arguments["loss_weights"]["scene"] == 0.25
    assert arguments["loss_weights"]["crop_consistency"] == 0.1
    assert arguments["augment"]["turn"] is False
    assert (arguments["num_rows"], arguments["num_steps"], arguments["num_processes"]) == (8, 2, 1)


def test_a_run_says_what_happened_in_every_step(model, processor, rows, tmp_path):
    evaluate = partial(RegionClassificationEvaluator(rows), processor=processor)
    config = configure(tmp_path, num_epochs=3, eval_every=2, report_to="tensorboard")
    train(model, processor, rows, config=config, evaluate=evaluate)
    records = read_records(tmp_path / "history.jsonl")
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    terms = {name for name in vars(LossWeights()) if getattr(LossWeights(), name)}
    others = {"step", "loss", "grad_norm", "learning_rate", "images_per_second"}
    assert all(record.keys() == terms | others for record in steps)
    evaluations = {record["step"]: record for record in records if "eval_top1_macro" in record}
    assert list(evaluations) == [0, 2, 4, 6]
    tracked = EventAccumulator(str(tmp_path / "geoalign_clip")).Reload().Scalars("loss")
    assert [event.value for event in tracked] == pytest.approx([record["loss"] for record in steps])
    assert Image.open(tmp_path / "curves.png").width > 500


def test_the_best_model_is_kept_with_its_scores(model, processor, rows, tmp_path):
    served = iter([0.1, 0.7, 0.4, 0.7])
    seen = []

    def evaluate(trained):
        assert trained is model
        seen.append(trained.visual_projection.weight.detach().clone())
        trained.eval()
        return {"score": next(served), "protocol": {"split": "all"}}

    config = configure(tmp_path, num_epochs=3, eval_every=2, best_metric="score")
    train(model, processor, rows, config=config, evaluate=evaluate)
    assert model.training
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["start"] == {"score": 0.1, "protocol": {"split": "all"}, "step": 0}
    assert (metrics["best"]["step"], metrics["final"]["step"]) == (2, 6)
    best = AutoModel.from_pretrained(tmp_path / "best").visual_projection.weight
    assert torch.equal(best, seen[1]) and not torch.equal(best, seen[3])


def test_a_number_that_is_none_is_told_and_stops_nothing(model, processor, rows, tmp_path, caplog):
    evaluate = lambda _: {"score": 0.5, "other": float("nan")}  # noqa: E731
    config = configure(tmp_path, best_metric="score")
    train(model, processor, rows, config=config, evaluate=evaluate)
    assert "the evaluation of step 0 gives no number for ['other']" in caplog.text
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["final"]["other"] is None and metrics["final"]["score"] == 0.5


def test_the_best_and_the_first_scores_survive_a_resume(built, processor, rows, tmp_path):
    def run(scores, **more):
        served = iter(scores)
        config = configure(tmp_path, eval_every=2, save_every=2, best_metric="score", **more)
        evaluate = lambda _: {"score": next(served)}  # noqa: E731
        train(copy.deepcopy(built[0]), processor, rows, config=config, evaluate=evaluate)
        return {
            name: each["score"] for name, each in json.loads((tmp_path / "metrics.json").read_text()).items()
        }

    assert run([0.1, 0.9, 0.5]) == {"start": 0.1, "best": 0.9, "final": 0.5}
    assert run([0.6], resume=True) == {"start": 0.1, "best": 0.9, "final": 0.6}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_with_all_of_its_terms(model, processor, rows, tmp_path, preset):
    train(model, processor, rows, PRESETS[preset], configure(tmp_path, num_epochs=1, batch_size=8))
    record = read_records(tmp_path / "history.jsonl")[-1]
    terms = {name: weight for name, weight in vars(PRESETS[preset]).items() if weight}
    assert all(record[name] > 0.01 for name in terms)
    assert record["loss"] == pytest.approx(
        sum(weight * record[name] for name, weight in terms.items()), rel=1e-5
    )


def test_a_checkpoint_in_half_precision_is_trained_and_saved_in_single(built, processor, rows, tmp_path):
    half = copy.deepcopy(built[0]).to(torch.bfloat16)
    folder = train(half, processor, rows, config=configure(tmp_path, num_epochs=1))
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float32}
    train(half, processor, rows, config=configure(tmp_path, num_epochs=1))


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps its settings for the life of a process; let this test have its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_under_bf16_the_loss_is_nearly_the_same_and_the_weights_are_float32(
    built, processor, rows, tmp_path, fresh_accelerate
):
    losses = []
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        folder = tmp_path / precision
        config = configure(folder, mixed_precision=precision, chunk_size=2)
        train(copy.deepcopy(built[0]), processor, rows, config=config)
        losses.append(torch.tensor([record["loss"] for record in read_records(folder / "history.jsonl")]))
        weights = load_file(folder / "final" / "model.safetensors").values()
        assert {tensor.dtype for tensor in weights} == {torch.float32}
    assert 0 < (losses[0] - losses[1]).abs().max() < 0.02 * losses[0].max()


def test_gradient_checkpointing_changes_no_bit_of_the_loss(built, processor, rows, tmp_path):
    losses = []
    for name in (False, True):
        config = configure(tmp_path / str(name), gradient_checkpointing=name)
        train(copy.deepcopy(built[0]), processor, rows, config=config)
        losses.append([record["loss"] for record in read_records(tmp_path / str(name) / "history.jsonl")])
    assert losses[0] == losses[1]


# Refusals


def test_fewer_rows_than_a_batch_are_refused(model, processor, rows, tmp_path):
    message = "there are 8 rows, fewer than one batch of 9 (9 on each of 1 processes). Lower batch_size."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        train(model, processor, rows, config=configure(tmp_path, batch_size=9))


def test_a_dataset_that_holds_no_rows_is_refused(model, processor, rows, tmp_path):
    with pytest.raises(ValueError, match=r"lacks the columns \['boxes'\]; it has \[.*'bbox', 'captions'"):
        train(model, processor, rows.rename_column("boxes", "bbox"), config=configure(tmp_path))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(built, processor, rows, tmp_path):
    """The third batch of an epoch of two rows each meets a region scale that has become infinite."""
    model = copy.deepcopy(built[0])
    config = configure(tmp_path, batch_size=2, num_epochs=1, save_every=2)
    steps = []

    def spoil(*_):
        steps.append(1)
        if len(steps) == 3:
            model.region_scale.logit_scale.data.fill_(float("nan"))

    model.region_scale.register_forward_pre_hook(spoil)
    with pytest.raises(
        ValueError, match=r"^the loss is not finite: \{'scene': [\d.]+, .*'region': nan"
    ) as caught:
        train(model, processor, rows, LossWeights(crop_consistency=0), config)
    expected = sorted(list(EpochSampler(8, 0))[4:6])
    assert f"in the batch of the rows {expected}. Look at those rows, lower learning_rate" in str(
        caught.value
    )
    newest = find_newest_checkpoint(tmp_path)
    assert newest.name == "checkpoint-2"
    assert all(tensor.isfinite().all() for tensor in load_file(newest / "model.safetensors").values())


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_spoils_the_weights(
    model, processor, rows, tmp_path
):
    model.visual_projection.weight.register_hook(lambda grad: grad * float("inf"))
    before = model.visual_projection.weight.detach().clone()
    with pytest.raises(ValueError, match=r"^the loss is not finite: .*'grad_norm': (nan|inf)"):
        train(model, processor, rows, config=configure(tmp_path))
    assert torch.equal(model.visual_projection.weight, before)


def test_an_output_folder_that_cannot_be_written_is_refused(model, processor, rows, tmp_path):
    (tmp_path / "file").write_text("")
    message = f"output_dir {tmp_path / 'file' / 'out'} cannot be written ("
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}.*Give a folder that can\\.$"):
        train(model, processor, rows, config=configure(tmp_path / "file" / "out"))


def test_an_evaluation_without_the_best_metric_is_refused(model, processor, rows, tmp_path):
    message = "best_metric is 'top1_macro', but the evaluation gives ['score']."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        train(model, processor, rows, config=configure(tmp_path), evaluate=lambda _: {"score": 0.5})


def test_settings_that_mean_nothing_are_refused():
    message = "teacher is 'mine'; it must be one of ('self', 'ema', 'frozen')."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TrainingConfig(teacher="mine")
    for low, names in (
        (0, ("chunk_size", "max_crops", "max_negatives")),
        (1, ("num_epochs", "keep_checkpoints")),
    ):
        for name in names:
            with pytest.raises(ValueError, match=f"^{name} is {low - 1}; it must be at least {low}.$"):
                TrainingConfig(**{name: low - 1})


def test_a_folder_with_checkpoints_of_another_run_is_refused(model, processor, rows, tmp_path):
    (tmp_path / "checkpoint-8").mkdir()
    message = (
        f"output_dir {tmp_path} holds checkpoint-8 of another run. Give --resume to go on with it, or "
        "another output_dir."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        train(model, processor, rows, config=configure(tmp_path))


def test_a_checkpoint_of_a_run_of_another_shape_is_refused(built, processor, rows, tmp_path):
    run = partial(train, processor=processor, rows=rows)
    run(copy.deepcopy(built[0]), config=configure(tmp_path, save_every=1))
    message = (
        "the checkpoint is of a run with {'num_steps': 4, 'batch': 4, 'num_processes': 1}, but this one has "
        "{'num_steps': 8, 'batch': 2, 'num_processes': 1}, so its data would come in another order. "
        "Resume with the same settings, or start from its weights."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run(copy.deepcopy(built[0]), config=configure(tmp_path, batch_size=2, resume=True))


def test_an_image_that_cannot_be_read_is_named(model, processor, coco_folder, tmp_path):
    path = coco_folder / "0.png"
    path.write_bytes(path.read_bytes()[:200])
    rows = from_coco(coco_folder / "rows.json", coco_folder)
    with pytest.raises(ValueError, match=r"^the image of row '.*0\.png' cannot be decoded"):
        train(model, processor, rows, config=configure(tmp_path))
