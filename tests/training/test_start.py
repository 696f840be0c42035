"""Laws of what training starts from: a GeoAlignCLIP as it is, any other CLIP converted on the way."""

import torch
from runs import build_trainer, list_losses

from geoalign_hf.training.start import load_start


def test_a_geoalign_clip_is_loaded_as_it_is(folder, built):
    model, processor = load_start(str(folder))
    for name, weight in built[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert type(processor).__name__ == "GeoAlignCLIPProcessor"


def test_another_clip_is_converted_and_trains(clip_folder, rows, tmp_path):
    model, converted = load_start(str(clip_folder))
    trainer = build_trainer(model, converted, rows, tmp_path / "run", learning_rate=1e-3, num_train_epochs=4)
    trainer.train()
    assert list_losses(trainer)[-1] < list_losses(trainer)[0]
