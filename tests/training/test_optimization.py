"""Laws of steps: accumulated gradients, learning rates by block, and the scaler of fp16."""

import copy

import pytest
import torch
from refusals import refuses
from runs import check_equal_weights, list_losses
from transformers import TrainerCallback


class KeepGradients(TrainerCallback):
    """Keeps the gradients of every step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})


@pytest.mark.parametrize("mini_batch_size", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_accumulated_gradients_are_the_mean_of_those_of_the_batches(start, model, tmp_path, mini_batch_size):
    """With a rate of 0, two epochs of four batches each; three batches per step, so that the last has one."""
    options = {"learning_rate": 0.0, "max_grad_norm": 0.0, "per_device_train_batch_size": 2}
    each, three = KeepGradients(), KeepGradients()
    alone = start(tmp_path / "a", model=copy.deepcopy(model), callbacks=[each], **options)
    alone.train()
    options |= {"gradient_accumulation_steps": 3, "mini_batch_size": mini_batch_size}
    trainer = start(tmp_path / "b", model=model, callbacks=[three], **options)
    trainer.train()
    groups = [each.steps[0:3], each.steps[3:4], each.steps[4:7], each.steps[7:8]]
    assert len(three.steps) == len(groups) == trainer.state.global_step
    for found, group in zip(three.steps, groups, strict=True):
        for name, grad in found.items():
            expected = sum(grads[name] for grads in group) / len(group)
            assert (grad - expected).norm() <= 1e-5 * expected.norm() + 1e-6, name
    losses = list_losses(alone)
    expected = [sum(losses[:3]) / 3, losses[3], sum(losses[4:7]) / 3, losses[7]]
    assert list_losses(trainer) == pytest.approx(expected, rel=1e-5)
    scene = [[r["scene"] for r in run.state.log_history if "scene" in r] for run in (alone, trainer)]
    assert scene[1][:2] == pytest.approx([sum(scene[0][:3]) / 3, scene[0][3]], rel=1e-5)


def test_blocks_of_a_tower_learn_more_slowly_the_lower_they_are(start, model):
    model.text_model.encoder.layers[0].requires_grad_(False)
    trainer = start(model=model, learning_rate=1e-3, layer_decay=0.5, num_train_epochs=1)
    trainer.train()
    groups = trainer.optimizer.param_groups
    rates = {parameter: group["initial_lr"] for group in groups for parameter in group["params"]}
    towers = model.vision_model, model.text_model
    for tower, norm in zip(
        towers, (model.vision_model.post_layernorm, towers[1].final_layer_norm), strict=True
    ):
        assert {rates[p] for p in tower.embeddings.parameters()} == {0.25e-3}
        assert {rates[p] for p in tower.encoder.layers[1].parameters()} == {1e-3}
        assert {rates[p] for p in norm.parameters()} == {1e-3}
    assert {rates[p] for p in model.vision_model.encoder.layers[0].parameters()} == {0.5e-3}
    assert rates[model.region_scale.logit_scale] == rates[model.visual_projection.weight] == 1e-3
    assert sorted(map(id, rates)) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all(group["weight_decay"] == 0 for group in groups if group["params"][0].ndim < 2)
    assert trainer.state.log_history[1]["learning_rate"] == 1e-3  # the highest rate is logged


def test_layer_decay_beside_an_optimizer_is_refused(start, model):
    optimizer = torch.optim.AdamW(model.parameters())
    with refuses("layer_decay", "optimizer"):
        start(model=model, layer_decay=0.5, optimizers=(optimizer, None)).train()


class Scaled:
    """A trainer under a real scaler of gradients, as fp16 has on a GPU. On a CPU it needs no autocast."""

    @staticmethod
    def start(start, folder, **options):
        trainer = start(folder, **options)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", 2.0**10, growth_interval=2)
        return trainer


@pytest.mark.slow
def test_the_state_of_the_scaler_of_fp16_is_resumed(start, tmp_path):
    options = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 9}
    whole = Scaled.start(start, tmp_path / "a", **options)
    whole.train()
    assert whole.accelerator.scaler.get_scale() == 2.0**13
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "checkpoint-3").rename(tmp_path / "b" / "checkpoint-3")
    resumed = Scaled.start(start, tmp_path / "b", **options, resume_from_checkpoint="last")
    resumed.train()
    assert resumed.accelerator.scaler.state_dict() == whole.accelerator.scaler.state_dict()
    check_equal_weights(tmp_path / "a" / "final", tmp_path / "b" / "final")


def test_a_gradient_that_no_scale_makes_finite_stops_the_run(start, model):
    model.visual_projection.weight.register_hook(lambda grad: grad * float("inf"))
    before = model.visual_projection.weight.detach().clone()
    trainer = Scaled.start(start, None, model=model, num_train_epochs=20)
    with refuses("not finite", "'grad_norm': "):
        trainer.train()
    assert trainer.state.global_step == 11  # from 2**10 to 2**-1
    assert torch.equal(model.visual_projection.weight, before)
