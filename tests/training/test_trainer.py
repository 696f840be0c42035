"""Laws of the trainer: what a run logs, evaluates and leaves, how it resumes, and what it refuses."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from refusals import refuses
from runs import EVERY_COLUMN, ServedScores, build_trainer, check_equal_weights, list_losses
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel, EarlyStoppingCallback, TrainerCallback, TrainingArguments

from geoalign_hf.data.augmentation import Augmentation
from geoalign_hf.data.collator import RowCollator
from geoalign_hf.data.loading import from_coco
from geoalign_hf.data.schema import build_rows, list_concepts
from geoalign_hf.data.training_dataset import EpochSampler
from geoalign_hf.evaluation.classification import RegionClassificationEvaluator
from geoalign_hf.losses.objective import PRESETS, LossWeights, compute_losses
from geoalign_hf.training.checkpoints import find_newest_checkpoint
from geoalign_hf.training.inputs import count_cut_texts
from geoalign_hf.training.step import encode_batch
from geoalign_hf.training.trainer import GeoAlignTrainer


@pytest.mark.parametrize(
    ("options", "has_vocabulary"),
    [
        ({}, True),
        ({"max_vocabulary": 2}, False),
        ({"loss_weights": LossWeights(concept=0.0)}, False),
        ({"loss_weights": LossWeights(concept=0.0, crop_concept=1.0)}, True),
    ],
)
def test_regions_are_contrasted_with_all_concepts_of_the_rows_if_these_are_few(
    start, rows, options, has_vocabulary
):
    batch = start(**options).data_collator([rows[i] for i in range(2)])
    assert ("vocabulary_ids" in batch) == has_vocabulary
    if has_vocabulary:
        assert len(batch["vocabulary_ids"]) == len(list_concepts(rows)) > 2


def test_training_lowers_the_loss_and_leaves_a_folder_that_loads(start, model, processor, rows, tmp_path):
    batch = RowCollator(processor, 6)([rows[i] for i in range(8)])
    weights = replace(EVERY_COLUMN, crop_consistency=0.0)

    def measure(trained):
        with torch.no_grad():
            output = SimpleNamespace(**encode_batch(trained.eval(), batch))
            return compute_losses(output, batch, weights)["loss"].item()

    before = measure(model)
    start(model=model, num_train_epochs=15, learning_rate=1e-3, save_strategy="no").train()
    assert measure(model) < 0.7 * before
    assert measure(AutoModel.from_pretrained(tmp_path / "final")) == measure(model)
    assert not hasattr(AutoModel.from_pretrained(tmp_path / "final").config, "use_cache")


@pytest.mark.parametrize(
    "options",
    [
        {"teacher": "ema", "teacher_decay": 0.5, "ema_decay": 0.9},
        {
            "gradient_accumulation_steps": 3,
            "per_device_train_batch_size": 2,
        },  # the last step of an epoch has 1
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"layer_decay": 0.5}, marks=pytest.mark.slow),
        pytest.param({"optim": "sgd"}, marks=pytest.mark.slow),  # has no state
        pytest.param({"mini_batch_size": 1, "dataloader_num_workers": 2}, marks=pytest.mark.slow),
        pytest.param({"teacher": "frozen", "ema_decay": 0.9, "max_steps": 5}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("step", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(start, rows, tmp_path, options, step):
    options |= {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 10}
    options |= {"augmentation": Augmentation(), "evaluators": [RegionClassificationEvaluator(rows)]}
    whole = start(tmp_path / "a", **options)
    whole.train()
    torch.manual_seed(99)  # another process would start from another state
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / f"checkpoint-{step}").rename(tmp_path / "b" / f"checkpoint-{step}")
    resumed = start(tmp_path / "b", **options, resume_from_checkpoint="last")
    resumed.train()
    check_equal_weights(tmp_path / "a" / "final", tmp_path / "b" / "final")
    last = f"checkpoint-{whole.state.max_steps}"
    check_equal_weights(tmp_path / "a" / last, tmp_path / "b" / last)
    assert list_losses(resumed) == list_losses(whole)
    assert resumed.scores == whole.scores


def test_checkpoints_are_saved_after_every_epoch_and_only_the_newest_are_kept(start, tmp_path):
    start(num_train_epochs=3).train()
    kept = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert kept == ["checkpoint-4", "checkpoint-6", "final"]
    for name in kept:
        assert AutoModel.from_pretrained(tmp_path / name).config.model_type == "geoalign_clip"
    assert find_newest_checkpoint(tmp_path).name == "checkpoint-6"


def test_arguments_are_written_beside_the_model(start, tmp_path):
    weights = LossWeights(scene=0.25)
    start(num_train_epochs=1, loss_weights=weights, augmentation=Augmentation()).train()
    settings = json.loads((tmp_path / "args.json").read_text())
    assert settings["loss_weights"]["scene"] == 0.25
    assert settings["training"]["per_device_train_batch_size"] == 4
    assert settings["augmentation"]["whole_share"] == Augmentation().whole_share
    assert (settings["num_rows"], settings["num_processes"]) == (8, 1)
    assert "output_dir" not in settings["training"]


def test_every_step_is_logged_with_all_terms(start, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = start(
        num_train_epochs=3, evaluators=[RegionClassificationEvaluator(rows)], eval_strategy="steps",
        eval_steps=4, report_to="tensorboard",
    )  # fmt: skip
    trainer.train()
    steps = [record for record in trainer.state.log_history if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    terms = {name for name in vars(EVERY_COLUMN) if getattr(EVERY_COLUMN, name)}
    others = {"step", "epoch", "loss", "grad_norm", "learning_rate", "images_per_second"}
    assert all(record.keys() == terms | others for record in steps)
    evaluated = [r["step"] for r in trainer.state.log_history if "eval_regions_top1_macro" in r]
    assert evaluated == [0, 4, 6]
    tracked = EventAccumulator(str(tmp_path / "board")).Reload().Scalars("train/loss")
    assert [event.value for event in tracked] == pytest.approx([record["loss"] for record in steps])
    assert Image.open(tmp_path / "curves.png").width > 500


def test_a_log_entry_is_the_mean_since_the_last_one(start, tmp_path):
    each, pairs = start(tmp_path / "a"), start(tmp_path / "b", logging_steps=2, logging_first_step=False)
    each.train(), pairs.train()
    scene = [r["scene"] for r in each.state.log_history if "scene" in r]
    found = [r["scene"] for r in pairs.state.log_history if "scene" in r]
    assert found == pytest.approx([(scene[0] + scene[1]) / 2, (scene[2] + scene[3]) / 2], rel=1e-5)


@pytest.mark.parametrize("is_greater", [True, False])
def test_the_best_model_is_kept_with_its_scores(start, tmp_path, is_greater):
    evaluator = ServedScores(0.1, *((0.7, 0.4) if is_greater else (0.4, 0.7)), greater_is_better=is_greater)
    trainer = start(evaluators=[evaluator])
    trainer.train()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["served start"] == {"score": 0.1, "protocol": {"split": "all"}, "step": 0}
    assert (metrics["served best"]["step"], metrics["served final"]["step"]) == (2, 4)
    best = AutoModel.from_pretrained(tmp_path / "best").visual_projection.weight
    assert torch.equal(best, evaluator.seen[1]) and not torch.equal(best, evaluator.seen[2])


def test_any_number_can_choose_the_best_model_which_can_be_the_final_one(start, tmp_path):
    scores = [{"score": 0.0, "other": other} for other in (0.5, 0.2, 0.8)]
    trainer = start(
        evaluators=[ServedScores(*scores)], metric_for_best_model="served_other", greater_is_better=False,
        load_best_model_at_end=True,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_metric == 0.2
    check_equal_weights(tmp_path / "best", tmp_path / "final")
    assert torch.equal(trainer.model.visual_projection.weight, trainer.evaluators[0].seen[1])


def test_early_stopping_and_callbacks_of_the_user_work(start):
    class Count(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **kwargs):
            self.steps += 1

    count = Count()
    trainer = start(
        num_train_epochs=9, evaluators=[ServedScores(0.1, 0.9, 0.5, 0.4, 0.3)], load_best_model_at_end=True,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2), count],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == count.steps == 6


def test_the_average_of_the_weights_is_evaluated_and_saved(start, tmp_path):
    evaluator, seen = ServedScores(0.1, 0.2), []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            seen.append(model.visual_projection.weight.detach().clone())

    trainer = start(num_train_epochs=1, ema_decay=0.5, evaluators=[evaluator], callbacks=[Look()])
    first = trainer.model.visual_projection.weight.detach().clone()
    trainer.train()
    average = first
    for step, weight in enumerate(seen):  # the decay starts at (1 + n) / (10 + n)
        average = average.lerp(weight, 1 - min(0.5, (1 + step) / (10 + step)))
    saved = AutoModel.from_pretrained(tmp_path / "final").visual_projection.weight
    for found in (saved, evaluator.seen[-1], trainer.model.visual_projection.weight):
        torch.testing.assert_close(found, average)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_with_all_of_its_terms(start, preset):
    trainer = start(num_train_epochs=1, per_device_train_batch_size=8, loss_weights=PRESETS[preset])
    trainer.train()
    record = next(r for r in trainer.state.log_history if "loss" in r)
    terms = {name: weight for name, weight in vars(PRESETS[preset]).items() if weight}
    assert all(record[name] > 0.01 for name in terms)
    expected = sum(weight * record[name] for name, weight in terms.items())
    assert record["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_in_half_precision_is_trained_and_saved_in_single(start, built, tmp_path):
    start(model=copy.deepcopy(built[0]).to(torch.bfloat16), num_train_epochs=1).train()
    dtypes = {tensor.dtype for tensor in load_file(tmp_path / "final" / "model.safetensors").values()}
    assert dtypes == {torch.float32}


@pytest.mark.slow
def test_under_bf16_the_loss_is_nearly_the_same_and_the_weights_are_float32(start, tmp_path):
    losses = []
    for bf16 in (False, True):
        trainer = start(tmp_path / str(bf16), bf16=bf16, mini_batch_size=2)
        trainer.train()
        losses.append(torch.tensor(list_losses(trainer)))
        weights = load_file(tmp_path / str(bf16) / "final" / "model.safetensors").values()
        assert {tensor.dtype for tensor in weights} == {torch.float32}
    assert 0 < (losses[0] - losses[1]).abs().max() < 0.02 * losses[0].max()


@pytest.mark.slow
def test_activation_checkpointing_changes_no_bit_of_the_loss(start, tmp_path):
    losses = []
    for is_on in (False, True):
        trainer = start(tmp_path / str(is_on), activation_checkpointing=is_on)
        trainer.train()
        losses.append(list_losses(trainer))
    assert losses[0] == losses[1]


def test_terms_without_data_are_reported_once_and_left_out(start, toy_rows, tmp_path, caplog):
    less = [row | {"description": None, "hard_negatives": [], "negative_kinds": []} for row in toy_rows]
    trainer = start(train_rows=build_rows(less))
    trainer.train()
    for column, term in (("description", "description"), ("hard_negatives", "hard_negative")):
        assert caplog.text.count(f"nothing in {column!r}, so the term {term!r}") == 1
        assert all(term not in record for record in trainer.state.log_history)
        assert json.loads((tmp_path / "args.json").read_text())["loss_weights"][term] == 0


def test_long_texts_that_are_cut_are_counted(start, toy_rows, tmp_path, caplog):
    long_rows = [row | {"description": f"{i} ships. " * 60} for i, row in enumerate(toy_rows)]
    start(train_rows=build_rows(long_rows), num_train_epochs=1).train()
    assert "8 texts in 'description' are longer than the text tower (77 tokens)" in caplog.text
    assert json.loads((tmp_path / "args.json").read_text())["num_cut_texts"] == {"description": 8}


@pytest.mark.parametrize(
    ("column", "term"),
    [
        ("captions", "scene"),
        ("description", "description"),
        ("phrases", "region"),
        ("concepts", "concept"),
        ("hard_negatives", "hard_negative"),
    ],
)
def test_long_texts_of_every_column_that_is_trained_on_are_counted(built, column, term):
    text = "a ship " * 60
    row = {"captions": [text], "description": text, "phrases": [text], "concepts": [text.strip()]}
    rows = Dataset.from_list([row | {"hard_negatives": [[text, "a ship"]]}] * 2)
    weights = LossWeights(**dict.fromkeys(LossWeights.__dataclass_fields__, 0.0) | {term: 1.0})
    counts = count_cut_texts(rows, built[1].tokenizer, weights, ["{} from above"])
    assert counts[column] == 1


# Refusals


def test_a_tokenizer_that_does_not_fit_the_text_tower_is_refused(model, processor, rows, tmp_path):
    longer, further = copy.deepcopy(processor), copy.deepcopy(processor)
    longer.tokenizer.model_max_length = 10**9
    further.tokenizer.add_special_tokens({"pad_token": "<more>"})
    for other, fact in ((longer, "77 positions"), (further, "<more>")):
        with refuses(fact):
            build_trainer(model, other, rows, tmp_path)


def test_rows_with_no_data_for_any_term_and_streamed_rows_are_refused(start, toy_rows, rows):
    nothing = [{name: row[name] for name in ("image", "boxes", "phrases", "concepts")} for row in toy_rows]
    with refuses("captions", "description"):
        start(train_rows=build_rows(nothing), loss_weights=PRESETS["clip"])
    for streamed in (rows.to_iterable_dataset(), iter(toy_rows), IterableRows()):
        with refuses(type(streamed).__name__, "datasets.Dataset", "streaming", "max_steps"):
            start(train_rows=streamed, max_steps=2)
    with refuses("['train', 'test']"):
        start(train_rows=DatasetDict(train=rows, test=rows))


class IterableRows(torch.utils.data.IterableDataset):
    """Rows of torch's kind of stream."""

    def __iter__(self):
        return iter(())


def test_arguments_of_a_stock_trainer_are_refused(model, processor, rows, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with refuses("TrainingArguments", "GeoAlignTrainingArguments", kind=TypeError):
        GeoAlignTrainer(model, args, train_dataset=rows, processing_class=processor)


def test_fewer_rows_than_a_batch_are_refused(start):
    with refuses("8 views", "one batch of 9", "1 processes", "per_device_train_batch_size"):
        start(per_device_train_batch_size=9).train()


def test_a_dataset_that_holds_no_rows_is_refused(start, rows):
    with refuses("['boxes']", "bbox", "build_rows"):
        start(train_rows=rows.rename_column("boxes", "bbox"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(start, tmp_path):
    """The third batch of two rows meets a region scale that has become infinite."""
    options = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "loss_weights": LossWeights(crop_consistency=0),
    }
    trainer = start(save_strategy="steps", save_steps=2, **options)
    steps = []

    def spoil(*_):
        steps.append(1)
        if len(steps) == 3:
            trainer.model.region_scale.logit_scale.data.fill_(float("nan"))

    trainer.model.region_scale.register_forward_pre_hook(spoil)
    expected = sorted(list(EpochSampler(8, 0))[4:6])
    with refuses("not finite", "'region': nan", f"rows {expected}", "learning_rate"):
        trainer.train()
    newest = find_newest_checkpoint(tmp_path)
    assert newest.name == "checkpoint-2"
    assert all(tensor.isfinite().all() for tensor in load_file(newest / "model.safetensors").values())


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_change(start, model):
    model.visual_projection.weight.register_hook(lambda grad: grad * float("inf"))
    before = model.visual_projection.weight.detach().clone()
    with refuses("not finite", "'grad_norm': "):
        start(model=model).train()
    assert torch.equal(model.visual_projection.weight, before)


def test_a_gradient_norm_limit_of_0_means_no_limit(start, tmp_path):
    trainers = [start(tmp_path / str(limit), max_grad_norm=limit) for limit in (0.0, 1e9)]
    for trainer in trainers:
        trainer.train()
    assert list_losses(trainers[0]) == list_losses(trainers[1])


def test_an_output_folder_that_cannot_be_written_is_refused(start, tmp_path):
    (tmp_path / "file").write_text("")
    with refuses(str(tmp_path / "file" / "out"), "cannot be written", kind=RuntimeError):
        start(tmp_path / "file" / "out").train()


def test_evaluators_without_the_best_metric_are_refused(start):
    with refuses("'served_top1'", "eval_served_score"):
        start(evaluators=[ServedScores(0.5)], metric_for_best_model="served_top1").train()


def test_evaluators_that_cannot_be_told_apart_are_refused(start):
    with refuses("['served', 'served']", "name"):
        start(evaluators=[ServedScores(), ServedScores()])
    with refuses("name", kind=TypeError):
        start(evaluators=[lambda embedder: {}])


@pytest.mark.parametrize("option", [{"eval_strategy": "steps"}, {"metric_for_best_model": "x"}])
def test_options_that_need_evaluators_are_refused_without(start, option):
    with refuses("evaluators", *option):
        start(**option)


def test_a_teacher_that_no_term_asks_is_refused(start):
    with refuses("teacher is 'ema'", "crop_consistency"):
        start(teacher="ema", loss_weights=LossWeights(crop_consistency=0))


@pytest.mark.parametrize("name", ["final", "best", "checkpoint-8", "metrics.json"])
def test_a_folder_with_anything_of_another_run_is_refused_or_cleared(start, tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("{}")
    with refuses(str(tmp_path), name, "overwrite_output_dir", kind=RuntimeError):
        start().train()
    start(num_train_epochs=1, overwrite_output_dir=True).train()
    assert (tmp_path / "mine").exists() and not (tmp_path / "checkpoint-8").exists()


@pytest.mark.parametrize(
    "change",
    [{"per_device_train_batch_size": 2}, {"learning_rate": 1e-5}, {"num_train_epochs": 3}, {"bf16": True}],
)
def test_a_checkpoint_of_a_run_with_other_settings_is_refused(start, change):
    start(num_train_epochs=1).train()
    with refuses("other settings", *[name for name in change if name != "num_train_epochs"]):
        start(**{"num_train_epochs": 1} | change, resume_from_checkpoint="last").train()


def test_an_image_that_cannot_be_read_is_named(start, coco_folder):
    path = coco_folder / "0.png"
    path.write_bytes(path.read_bytes()[:200])
    with refuses("0.png", "cannot be read as an image"):
        start(train_rows=from_coco(coco_folder / "rows.json", coco_folder)).train()
