"""GeoAlignCLIPModel: tensors to embeddings."""

import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel

from geoalign_hf import GeoAlignCLIPConfig, GeoAlignCLIPModel
from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.model.regions_geoalign_clip import pool_regions, weigh_boxes, xyxy_to_quads

BOXES = torch.tensor(
    [[[0.0, 0.0, 0.5, 1.0], [0.1, 0.2, 0.9, 0.7]], [[0.3, 0.3, 0.4, 0.4], [0.0, 0.0, 1.0, 1.0]]]
)
MASK = torch.tensor([[True, True], [True, False]])


def draw_pixels(seed: int = 0, side: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def norm(embeds: torch.Tensor) -> torch.Tensor:
    return embeds.norm(dim=-1)


# Embeddings


def test_all_embeddings_are_unit_vectors(model, processor):
    tokens = processor(text=["a ship", "two storage tanks"], padding=True, return_tensors="pt")
    concepts = processor.tokenize_concepts(["ship", "road", "airplane"])
    with torch.no_grad():
        embeds = {
            (2, 32): model.embed_images(draw_pixels()),
            (2, 2, 32): model.embed_regions(draw_pixels(), BOXES),
            (3, 32): model.embed_concepts(**concepts),
        }
        text_embeds = model.embed_text(**tokens)
    torch.testing.assert_close(norm(text_embeds), torch.ones(2))
    for shape, vectors in embeds.items():
        assert vectors.shape == shape
        torch.testing.assert_close(norm(vectors), torch.ones(shape[:-1]))


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_weights_that_give_no_direction_are_refused_where_unit_vectors_are_promised(model, processor, value):
    concepts = processor.tokenize_concepts(["ship"])
    tokens = processor(text=["a ship"], return_tensors="pt")
    with torch.no_grad():
        model.embed_regions(draw_pixels(), BOXES, region_mask=MASK)  # zeros for padding are as documented
        for parameter in model.parameters():
            parameter.fill_(value)
        for embed in (
            lambda: model.embed_images(draw_pixels()),
            lambda: model.embed_regions(draw_pixels(), BOXES),
            lambda: model.embed_text(**tokens),
            lambda: model.embed_concepts(**concepts),
            lambda: Embedder(model, processor).embed_text(["a ship"]),
        ):
            with pytest.raises(ValueError, match="zero, NaN or infinite"):
                embed()


def test_a_region_is_the_pooled_dense_map_at_unit_length(model):
    with torch.no_grad():
        dense = model.get_patch_features(draw_pixels())  # (B, D, h, w)
        assert dense.shape == (2, 32, 4, 4)
        pooled = pool_regions(dense.flatten(2).mT, weigh_boxes(BOXES, (4, 4)))
        expected = torch.nn.functional.normalize(pooled, dim=-1)
        torch.testing.assert_close(model.embed_regions(draw_pixels(), BOXES), expected, atol=1e-6, rtol=1e-5)


def test_region_features_are_region_embeds_before_normalisation(model):
    with torch.no_grad():
        features = model.get_region_features(
            draw_pixels(), BOXES, region_mask=MASK, output_hidden_states=True
        )
        embeds = model.embed_regions(draw_pixels(), region_boxes=BOXES, region_mask=MASK)
        (first, *_) = model.get_region_features(draw_pixels(), BOXES, return_dict=False)
    assert features.pooler_output.shape == (2, 2, 32)
    assert len(features.hidden_states) == 3
    torch.testing.assert_close(torch.nn.functional.normalize(features.pooler_output, dim=-1), embeds)
    assert (norm(features.pooler_output[MASK]) - 1).abs().min() > 1e-3
    torch.testing.assert_close(first, features.last_hidden_state)


def test_the_saved_file_has_the_keys_of_the_model(model, tmp_path):
    torch.nn.init.constant_(model.scene_scale.offset, 0.5)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    fresh = GeoAlignCLIPModel(model.config)
    fresh.load_state_dict(saved)
    assert fresh.scene_scale(fresh.logit_scale).item() == model.scene_scale(model.logit_scale).item()


def test_padding_regions_are_zeros_and_change_no_other(model):
    with torch.no_grad():
        alone = model(pixel_values=draw_pixels(), region_boxes=BOXES).region_embeds
        padded = model(pixel_values=draw_pixels(), region_boxes=BOXES, region_mask=MASK).region_embeds
    torch.testing.assert_close(padded[MASK], alone[MASK], rtol=0, atol=0)
    assert padded[~MASK].abs().max() == 0


def test_permuting_regions_permutes_their_embeddings(model):
    with torch.no_grad():
        forward = model.embed_regions(draw_pixels(), BOXES)
        backward = model.embed_regions(draw_pixels(), BOXES.flip(1))
    torch.testing.assert_close(forward.flip(1), backward)


def test_a_mask_that_fills_the_patches_of_a_quad_gives_the_features_of_the_quad(model):
    left = torch.tensor([[[0.0, 0.0, 0.5, 1.0]]]).repeat(2, 1, 1)
    coverage = torch.zeros(2, 1, 64, 64)
    coverage[..., :32] = 1
    with torch.no_grad():
        by_quad = model.embed_regions(draw_pixels(), region_quads=xyxy_to_quads(left))
        by_mask = model.embed_regions(draw_pixels(), region_coverage=coverage)
    torch.testing.assert_close(by_quad, by_mask)


def test_no_regions_at_all_give_an_empty_result(model, processor):
    tokens = processor(text=["a ship"], return_tensors="pt")
    output = model(**tokens, pixel_values=draw_pixels(), region_boxes=torch.zeros(2, 0, 4))
    assert output.region_embeds.shape == (2, 0, 32)
    assert output.logits_per_region.shape == (2, 0, 1)


def test_concepts_are_the_renormalised_mean_over_templates(model, processor):
    tokens = processor.tokenize_concepts(["ship"], ["{} at sea", "a {}"])
    texts = processor(text=["ship at sea", "a ship"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.embed_text(**texts).mean(dim=0), dim=-1)
        torch.testing.assert_close(model.embed_concepts(**tokens)[0], expected)


def test_logits_are_cosines_times_their_own_scale(model, processor):
    tokens = processor(text=["a ship", "a road", "an airplane"], padding=True, return_tensors="pt")
    torch.nn.init.constant_(model.region_scale.logit_scale, 1.0)
    with torch.no_grad():
        output = model(**tokens, pixel_values=draw_pixels(), region_boxes=BOXES)
    assert output.logits_per_image.shape == (2, 3)
    scene = output.image_embeds @ output.text_embeds.T * model.logit_scale.exp()
    torch.testing.assert_close(output.logits_per_image, scene)
    torch.testing.assert_close(output.logits_per_text, scene.T)
    region = output.region_embeds @ output.text_embeds.T * torch.tensor(1.0).exp()
    torch.testing.assert_close(output.logits_per_region, region)


def test_both_scales_are_capped_at_100(model):
    torch.nn.init.constant_(model.logit_scale, 9.0)
    torch.nn.init.constant_(model.region_scale.logit_scale, 9.0)
    output = model(input_ids=torch.tensor([[1, 2, 3]]), pixel_values=draw_pixels())
    assert output.logit_scale == output.region_logit_scale == 100


def test_the_loss_is_clips_own(model, processor):
    tokens = processor(text=["a ship", "a road"], padding=True, return_tensors="pt")
    output = model(**tokens, pixel_values=draw_pixels(), return_loss=True)
    own = torch.arange(2)
    expected = torch.nn.functional.cross_entropy(output.logits_per_image, own)
    expected = (expected + torch.nn.functional.cross_entropy(output.logits_per_text, own)) / 2
    torch.testing.assert_close(output.loss, expected)


def test_regions_change_neither_images_nor_texts(model, processor):
    tokens = processor(text=["a ship"], return_tensors="pt")
    with torch.no_grad():
        bare = model(**tokens, pixel_values=draw_pixels())
        full = model(**tokens, pixel_values=draw_pixels(), region_boxes=BOXES)
    torch.testing.assert_close(bare.image_embeds, full.image_embeds, rtol=0, atol=0)
    torch.testing.assert_close(bare.text_embeds, full.text_embeds, rtol=0, atol=0)


def test_a_tuple_holds_the_same_in_the_same_order(model):
    output = model(pixel_values=draw_pixels(), region_boxes=BOXES)
    values = model(pixel_values=draw_pixels(), region_boxes=BOXES, return_dict=False)
    torch.testing.assert_close(values[0], output.image_embeds)
    assert len(values) == len(output.to_tuple())


# Dense modes and sizes


def compute_value_block(model, pixels):
    """The last block with its value path alone, written out."""
    states = model.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    layer = model.vision_model.encoder.layers[-1]
    attention = layer.self_attn
    states = states + attention.out_proj(attention.v_proj(layer.layer_norm1(states)))
    states = states + layer.mlp(layer.layer_norm2(states))
    return model.visual_projection(model.vision_model.post_layernorm(states))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_value_mode_is_the_last_block_without_mixing(model, implementation):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        expected = compute_value_block(model, draw_pixels()).mT.unflatten(-1, (4, 4))
        found = model.get_patch_features(draw_pixels(), dense_mode="value")
        last = model.get_patch_features(draw_pixels(), dense_mode="last")
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert (found - last).abs().max() > 1e-2


def test_the_configured_mode_is_the_default(model):
    model.config.dense_mode = "value"
    with torch.no_grad():
        by_config = model.embed_regions(draw_pixels(), BOXES)
        by_argument = model.embed_regions(draw_pixels(), BOXES, dense_mode="value")
    torch.testing.assert_close(by_config, by_argument, rtol=0, atol=0)


def test_a_model_trained_at_one_size_pools_regions_at_another(model):
    with torch.no_grad():
        output = model(pixel_values=draw_pixels(side=128), region_boxes=BOXES, interpolate_pos_encoding=True)
        dense = model.get_patch_features(draw_pixels(side=128), interpolate_pos_encoding=True)
    assert dense.shape == (2, 32, 8, 8)
    pooled = pool_regions(dense.flatten(2).mT, weigh_boxes(BOXES, (8, 8)))
    expected = torch.nn.functional.normalize(pooled, dim=-1)
    torch.testing.assert_close(output.region_embeds, expected, atol=1e-6, rtol=1e-5)


def test_images_need_not_be_square(model):
    pixels = torch.randn(1, 3, 64, 128)
    features = model.get_patch_features(pixels, interpolate_pos_encoding=True)
    assert features.shape == (1, 32, 4, 8)
    right = torch.tensor([[[0.5, 0.0, 1.0, 1.0]]])
    with torch.no_grad():
        found = model.embed_regions(pixels, region_quads=xyxy_to_quads(right), interpolate_pos_encoding=True)
        expected = torch.nn.functional.normalize(features[0, :, :, 4:].mean(dim=(1, 2)), dim=-1)
    torch.testing.assert_close(found[0, 0], expected, atol=1e-6, rtol=1e-5)


# Initial values


def list_stds(model) -> dict[str, float]:
    return {name: tensor.std().item() for name, tensor in model.named_parameters() if tensor.numel() > 500}


def test_every_fresh_weight_has_the_spread_that_clip_gives_it(built):
    config = built[0].config
    torch.manual_seed(0)
    ours = list_stds(GeoAlignCLIPModel(config))
    torch.manual_seed(0)
    clips = list_stds(CLIPModel(CLIPConfig(**{**config.to_dict(), "model_type": "clip"})))
    assert ours.keys() == clips.keys()
    for name, std in clips.items():
        assert ours[name] == pytest.approx(std, rel=0.1), name


def test_the_region_scale_starts_from_the_configured_scale(built):
    config = GeoAlignCLIPConfig(**{**built[0].config.to_dict(), "logit_scale_init_value": 1.5})
    model = GeoAlignCLIPModel(config)
    assert model.region_scale.logit_scale.tolist() == [1.5]
    assert model.logit_scale.item() == 1.5


def test_on_top_of_a_clip_checkpoint_the_region_scale_starts_from_its_scale(built, tmp_path):
    config = built[0].config
    clip = CLIPModel(CLIPConfig(**{**config.to_dict(), "model_type": "clip"}))
    torch.nn.init.constant_(clip.logit_scale, 4.25)
    clip.save_pretrained(tmp_path)
    model = GeoAlignCLIPModel.from_pretrained(tmp_path, config=config)
    assert model.region_scale.logit_scale.tolist() == [4.25]
    assert model.logit_scale.item() == 4.25


def test_weights_missing_from_a_checkpoint_get_their_own_spread(built, tmp_path):
    config = built[0].config
    clip = CLIPModel(CLIPConfig(**{**config.to_dict(), "model_type": "clip"}))
    vision_only = {key: tensor for key, tensor in clip.state_dict().items() if key.startswith("v")}
    clip.save_pretrained(tmp_path, state_dict=vision_only)
    model = GeoAlignCLIPModel.from_pretrained(tmp_path, config=config)
    torch.testing.assert_close(model.visual_projection.weight, clip.visual_projection.weight, rtol=0, atol=0)
    for name, std in list_stds(clip).items():
        assert list_stds(model)[name] == pytest.approx(std, rel=0.1), name
    assert model.region_scale.logit_scale.item() == model.logit_scale.item()
    assert model.logit_scale.item() == pytest.approx(config.logit_scale_init_value)


# Round trips


def test_saved_and_loaded_the_model_gives_equal_bits(built, folder):
    loaded = GeoAlignCLIPModel.from_pretrained(folder)
    with torch.no_grad():
        ours = built[0](pixel_values=draw_pixels(), region_boxes=BOXES)
        theirs = loaded(pixel_values=draw_pixels(), region_boxes=BOXES)
    assert torch.equal(ours.region_embeds, theirs.region_embeds)
    assert torch.equal(ours.image_embeds, theirs.image_embeds)


def test_only_safetensors_are_written(folder):
    assert [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")] == []
    assert (folder / "model.safetensors").stat().st_size > 10_000


def test_our_checkpoint_loads_as_a_clip_with_equal_embeddings(built, folder):
    clip = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = clip.get_image_features(draw_pixels()).pooler_output
        theirs = torch.nn.functional.normalize(theirs, dim=-1)
        torch.testing.assert_close(built[0].embed_images(draw_pixels()), theirs)


def test_a_lora_adapter_trains_the_region_scale_and_reloads_exactly(model, built, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["region_scale"])
    adapted = get_peft_model(model, config)
    output = adapted(pixel_values=draw_pixels(), region_boxes=BOXES)
    (output.region_embeds.sum() * output.region_logit_scale).backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert any("lora_B" in name and "vision" in name for name in trained)
    assert any("region_scale.modules_to_save" in name for name in trained)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        expected = adapted.eval()(pixel_values=draw_pixels(), region_boxes=BOXES)
    adapted.save_pretrained(tmp_path)
    import copy

    reloaded = PeftModel.from_pretrained(copy.deepcopy(built[0]), tmp_path).eval()
    with torch.no_grad():
        found = reloaded(pixel_values=draw_pixels(), region_boxes=BOXES)
    torch.testing.assert_close(found.region_embeds, expected.region_embeds, rtol=0, atol=0)
    assert found.region_logit_scale == expected.region_logit_scale


@pytest.mark.parametrize("dense_mode", ["last", "value"])
def test_gradient_checkpointing_changes_no_gradient(model, dense_mode):
    model.config.dense_mode = dense_mode
    model.train()
    gradients = []
    for enable in (False, True):
        if enable:
            enable_checkpointing(model)
        model.zero_grad()
        model(pixel_values=draw_pixels(), region_boxes=BOXES).region_embeds.sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def enable_checkpointing(model):
    """By the name that this version of transformers wants."""
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    next(getattr(model, name) for name in names if hasattr(model, name))({"use_reentrant": False})


# Refusals


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"pixel_values": None, "region_boxes": None},
            "neither input_ids nor pixel_values is given. Pass texts, images or both.",
        ),
        (
            {"inputs_embeds": torch.zeros(1)},
            "inputs_embeds is given, but CLIP's text tower takes token ids. Pass input_ids.",
        ),
        (
            {"return_loss": True},
            "return_loss compares images with texts. Pass both input_ids and pixel_values.",
        ),
        (
            {"pixel_values": None, "input_ids": torch.zeros(1, 3, dtype=torch.long)},
            "regions are given without pixel_values. Pass the images that they lie in.",
        ),
        (
            {"return_loss": True, "input_ids": torch.zeros(2, 3, dtype=torch.long)},
            "return_loss is CLIP's loss on whole images, in which regions take no part. "
            "Leave the regions out, or train them with geoalign_hf.compute_losses.",
        ),
        (
            {"boxes": BOXES, "input_boxes": BOXES},
            "the model does not know the arguments ['boxes', 'input_boxes']. Prepare images, texts and "
            "regions with GeoAlignCLIPProcessor; regions are region_boxes, region_quads or region_coverage.",
        ),
        (
            {"region_quads": xyxy_to_quads(BOXES)},
            "regions are given as region_boxes and region_quads. Give one form in a call.",
        ),
        (
            {"region_boxes": torch.tensor([[[0.0, 0.0, 0.5, 0.5]], [[0.0, 0.0, 30.0, 40.0]]])},
            "region_boxes[1, 0] = [0.0, 0.0, 30.0, 40.0] is not in the frame of pixel_values: from 0 to 1, "
            "with x0 <= x1 and y0 <= y1. Pass pixels of the image to the processor as boxes, quads or masks; "
            "it converts them.",
        ),
        (
            {"region_boxes": BOXES.repeat(2, 1, 1)},
            "region_boxes is for 4 images, but there are 2 images. "
            "Give one list of regions per image, an empty one where there are none.",
        ),
        (
            {"pixel_values": torch.zeros(2, 3, 72, 64), "interpolate_pos_encoding": True},
            "pixel_values have 72 x 64 pixels, which are not multiples of the patch size 16. "
            "Regions would be pooled from the wrong place. Resize to a multiple of 16.",
        ),
    ],
)
def test_what_cannot_be_embedded_is_refused(built, change, message):
    inputs = {"pixel_values": draw_pixels(), "region_boxes": BOXES} | change
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        built[0](**inputs)


@pytest.mark.parametrize("method", ["get_region_features", "embed_regions"])
def test_arguments_that_no_tower_knows_are_refused_beside_regions(built, method):
    with pytest.raises(ValueError, match=r"does not know the arguments \['boxes', 'input_boxes'\]"):
        getattr(built[0], method)(draw_pixels(), BOXES, boxes=BOXES, input_boxes=BOXES)
    getattr(built[0], method)(draw_pixels(), BOXES, output_hidden_states=True)


def test_regions_in_no_form_are_refused(built):
    message = "no regions are given. Give region_boxes, region_quads or region_coverage."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        built[0].embed_regions(draw_pixels())


def test_an_unknown_dense_mode_is_refused(built):
    with pytest.raises(ValueError, match=r"^dense_mode is 'first'; it must be one of \('last', 'value'\)\.$"):
        built[0].get_patch_features(draw_pixels(), dense_mode="first")


def test_an_exported_model_takes_any_number_of_images_and_regions(built):
    num_images, num_regions = torch.export.Dim("images"), torch.export.Dim("regions")
    shapes = {"pixel_values": {0: num_images}, "region_boxes": {0: num_images, 1: num_regions}}
    inputs = {"pixel_values": draw_pixels(), "region_boxes": BOXES}
    exported = torch.export.export(built[0], (), inputs, dynamic_shapes=shapes, strict=False)
    other = {"pixel_values": draw_pixels(1)[:1], "region_boxes": BOXES[:1].repeat(1, 3, 1)}
    found = exported.module()(**other)
    assert torch.allclose(found.region_embeds, built[0](**other).region_embeds, atol=1e-6)
