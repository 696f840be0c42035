"""Laws of what training starts from: a GeoAlignCLIP as it is, any other CLIP converted on the way."""

import torch
from runs import build_trainer, list_losses
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from geoalign_hf.training.start import load_start


def test_a_geoalign_clip_is_loaded_as_it_is(folder, built):
    model, processor = load_start(str(folder))
    for name, weight in built[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert type(processor).__name__ == "GeoAlignCLIPProcessor"


def test_another_clip_is_converted_and_trains(processor, rows, tmp_path):
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = processor.tokenizer
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    text = tower | {"vocab_size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in names}
    vision = tower | {"image_size": 64, "patch_size": 16}
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    images = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=64)
    CLIPProcessor(images, tokenizer).save_pretrained(tmp_path / "clip")
    model, converted = load_start(str(tmp_path / "clip"))
    trainer = build_trainer(model, converted, rows, tmp_path / "run", learning_rate=1e-3, num_train_epochs=4)
    trainer.train()
    assert list_losses(trainer)[-1] < list_losses(trainer)[0]
