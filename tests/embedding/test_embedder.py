"""Laws of the Embedder: any CLIP and any region source give the vectors that the model gives itself."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from refusals import refuses
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from geoalign_hf.data.schema import build_rows
from geoalign_hf.data.views import find_window, list_views, resolve_context
from geoalign_hf.embedding.concept_bank import ConceptBank
from geoalign_hf.embedding.embedder import Embedder


@pytest.fixture(scope="module")
def stock(built):
    """A stock CLIP with the same weights, and the processor that usually goes with one: it crops."""
    model, processor = built
    towers = {name: getattr(model.config, name).to_dict() for name in ("text_config", "vision_config")}
    clip = CLIPModel(CLIPConfig(**towers, projection_dim=model.config.projection_dim)).eval()
    weights = {name: value for name, value in model.state_dict().items() if "_scale." not in name}
    clip.load_state_dict(weights)
    side = {"height": 64, "width": 64}
    image_processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=side)
    return clip, CLIPProcessor(image_processor, processor.tokenizer)


# Any model


def test_a_stock_clip_with_the_same_weights_gives_the_same_embeddings(built, stock, toy_rows):
    squares = [row["image"].resize((96, 96)) for row in toy_rows]  # of which it crops nothing
    texts = ["a small red ship", "a road"]
    ours, theirs = Embedder(*built), Embedder(*stock)
    # Pixels of the stock processor differ by 1 of 255.
    torch.testing.assert_close(ours.embed_images(squares), theirs.embed_images(squares), atol=1e-3, rtol=0)
    torch.testing.assert_close(ours.embed_text(texts), theirs.embed_text(texts), atol=1e-5, rtol=0)
    assert ours.describe()["resize"] == "square"
    assert theirs.describe()["resize"] == "shorter side, center crop"
    assert theirs.describe()["dense_mode"] is None


def test_a_fresh_adapter_changes_no_embedding(model, built, rows, processor):
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    one, other = Embedder(*built), Embedder(adapted, processor)
    torch.testing.assert_close(one.embed_regions(rows), other.embed_regions(rows), atol=1e-6, rtol=0)
    torch.testing.assert_close(one.embed_images(rows["image"]), other.embed_images(rows["image"]))
    torch.testing.assert_close(one.embed_text(["a ship"]), other.embed_text(["a ship"]))
    for ours, theirs in zip(
        one.embed_patches(rows["image"]), other.embed_patches(rows["image"]), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_stock_clip_embeds_regions_as_crops_only(stock, rows):
    embedder = Embedder(*stock)
    embeds = embedder.embed_regions(rows, "crop")
    assert embeds.shape == (sum(map(len, rows["boxes"])), 32)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(len(embeds)))
    for source in ("image", "window", "both"):
        with refuses("CLIPModel has no embed_regions", 'region_source="crop"'):
            embedder.embed_regions(rows, source)
    with refuses("CLIPModel has no get_patch_features"):
        next(embedder.embed_patches(rows["image"]))


def test_a_model_without_embedding_methods_is_refused(processor):
    with refuses("Linear has neither embed_images nor get_image_features", kind=TypeError):
        Embedder(torch.nn.Linear(2, 2), processor)


def test_half_precision_gives_nearly_the_same_embeddings(model, built, rows, processor):
    half = Embedder(model.to(torch.bfloat16), processor)
    for ours, halved in (
        (Embedder(*built).embed_regions(rows), half.embed_regions(rows)),
        (Embedder(*built).embed_text(["a ship"]), half.embed_text(["a ship"])),
    ):
        assert halved.dtype == torch.float32
        assert normalize(halved, dim=-1).mul(ours).sum(dim=-1).min() > 0.999


# Images and texts


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_embeddings_do_not_depend_on_the_batch(built, rows, batch_size):
    embedder = Embedder(*built, batch_size=batch_size)
    model, processor = built
    pixels = processor(images=list(rows["image"]), return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(embedder.embed_images(rows["image"]), model.embed_images(**pixels))


def test_a_path_and_its_image_give_the_same_embedding(built, toy_rows, tmp_path):
    toy_rows[0]["image"].save(tmp_path / "a.png")
    embedder = Embedder(*built)
    assert torch.equal(
        embedder.embed_images([tmp_path / "a.png"]), embedder.embed_images([toy_rows[0]["image"]])
    )


def test_texts_come_back_in_their_order_and_equal_ones_get_equal_bits(built):
    texts = ["a road", "a small red ship on the water", "a road", "a ship"]
    embedder = Embedder(*built, batch_size=1)
    embeds = embedder.embed_text(texts)
    assert torch.equal(embeds[0], embeds[2])
    for text, embed in zip(texts, embeds, strict=True):
        torch.testing.assert_close(embedder.embed_text([text])[0], embed, atol=1e-6, rtol=0)


def test_texts_that_are_too_long_are_truncated_and_counted(built):
    embedder = Embedder(*built)
    long = "ship " * 200
    cut = embedder.embed_text([long, long + "road", "a ship"])
    assert embedder.describe()["num_cut_texts"] == 2
    torch.testing.assert_close(cut[0], cut[1])
    assert embedder.describe()["text_length"] == 77


def test_concepts_embed_as_in_the_concept_bank(built):
    templates = ("a satellite photo of {}.", "{} from above, and much more around it")
    bank = ConceptBank.build(*built, ["ship", "storage tank", "road"], templates)
    embeds = Embedder(*built).embed_concepts(bank.concepts, templates)
    torch.testing.assert_close(embeds, bank.embeds, atol=1e-6, rtol=0)


def test_a_repeated_concept_and_a_template_without_braces_are_refused(built):
    with refuses("['ship']", "more than once"):
        Embedder(*built).embed_concepts(["ship", "road", "ship"], ("a {}",))
    with refuses("templates[1] = 'a ship'", "{}"):
        Embedder(*built).embed_concepts(["ship"], ("a {}", "a ship"))


@pytest.mark.parametrize("image_size", [64, 96])
def test_images_are_prepared_at_the_given_size(built, stock, rows, image_size):
    for model, processor in (built, stock):
        embedder = Embedder(model, processor, image_size)
        assert embedder._prepare([rows[0]["image"]])["pixel_values"].shape[-2:] == (image_size, image_size)
        assert embedder.embed_images([rows[0]["image"]]).shape == (1, 32)
        assert embedder.describe()["image_size"] == image_size


# Regions


@pytest.mark.parametrize("source", ["image", "window", "crop", "both"])
def test_regions_of_all_rows_are_those_of_each_row_in_order(built, rows, source):
    embedder = Embedder(*built, batch_size=3)
    alone = [embedder.embed_regions(rows.select([i]), source) for i in range(len(rows))]
    torch.testing.assert_close(embedder.embed_regions(rows, source), torch.cat(alone), atol=1e-5, rtol=0)


def test_regions_pooled_from_the_image_are_those_of_the_model(built, toy_rows, rows):
    model, processor = built
    batch = processor(images=toy_rows[0]["image"], boxes=[toy_rows[0]["boxes"]], return_tensors="pt")
    with torch.no_grad():
        expected = model.embed_regions(**batch)[0]
    torch.testing.assert_close(Embedder(*built).embed_regions(rows.select([0])), expected)


def test_a_crop_is_the_window_embedded_as_an_image(built, toy_rows, rows):
    image = toy_rows[0]["image"]
    windows = [image.crop(find_window(box, image.size, 2.0)) for box in toy_rows[0]["boxes"]]
    embedder = Embedder(*built)
    torch.testing.assert_close(
        embedder.embed_regions(rows.select([0]), "crop", 2.0), embedder.embed_images(windows)
    )


def test_the_source_both_ranks_as_the_mean_of_image_and_crop_scores(built, rows):
    embedder = Embedder(*built)
    concepts = embedder.embed_concepts(["ship", "road", "airplane", "storage tank"], ("a {}", "one {}"))
    image, crop, both = (
        embedder.embed_regions(rows, source) @ concepts.T for source in ("image", "crop", "both")
    )
    assert torch.equal(((image + crop) / 2).argsort(dim=-1), both.argsort(dim=-1))


def test_a_box_partly_outside_its_image_is_embedded_by_every_source(built):
    row = {"image": Image.new("RGB", (100, 80)), "boxes": [[-60.0, 10.0, 20.0, 30.0]]}
    rows = build_rows([row | {"phrases": ["x"], "concepts": ["x"]}])
    for source in ("image", "window", "crop", "both"):
        assert Embedder(*built).embed_regions(rows, source).shape == (1, 32)


def test_several_views_give_the_renormalised_mean_of_their_embeddings(built, rows):
    embedder = Embedder(*built)
    parts = [embedder.embed_regions(rows, "window", context) for context in (1.5, 2.0, 4.0)]
    expected = normalize(torch.stack(parts).mean(dim=0), dim=-1)
    found = embedder.embed_regions(rows, "window", views=(1.5, 2.0, 4.0))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    alone = embedder.embed_regions(rows, "window", views=[2.0])
    torch.testing.assert_close(alone, parts[1], atol=1e-6, rtol=0)
    for views, context in (([], None), ([2.0], 1.5)):
        with refuses(str(views), str(context)):
            embedder.embed_regions(rows, "window", context, views)
    with refuses("context is 0.5"):
        embedder.embed_regions(rows, "window", views=[2.0, 0.5])


def test_the_view_that_a_model_was_trained_for_is_the_default(model, processor, rows):
    embedder = Embedder(model, processor)
    assert embedder.resolve_view() == ("image", [None])
    model.config.region_view, model.config.region_context = "window", 1.8
    assert embedder.resolve_view() == ("window", [1.8])
    assert embedder.resolve_view("window", 2.5) == ("window", [2.5])
    assert embedder.resolve_view("crop") == ("crop", [1.5])  # not what the model was trained for
    assert torch.equal(embedder.embed_regions(rows), embedder.embed_regions(rows, "window", 1.8))


@pytest.mark.parametrize("texts", ["a ship", ["a ship", ""], ["a ship", None]])
def test_a_string_in_place_of_a_list_and_entries_without_words_are_refused(built, texts):
    with refuses("texts"):
        Embedder(*built).embed_text(texts)


def test_one_string_of_concepts_is_split_at_its_commas(built):
    embedder = Embedder(*built)
    assert torch.equal(
        embedder.embed_concepts("ship, storage tank"), embedder.embed_concepts(["ship", "storage tank"])
    )
    with refuses("'ship'", "more than once"):
        embedder.embed_concepts("ship,ship")
    with refuses("concepts[1] is empty"):
        embedder.embed_concepts("ship,")


def test_one_path_in_place_of_a_list_of_images_is_refused(built):
    with refuses("'harbor.png'"):
        Embedder(*built).embed_images("harbor.png")


def test_sizes_below_one_are_refused(built):
    for options in ({"image_size": 0}, {"batch_size": 0}):
        with refuses(*(f"{name} is {value}" for name, value in options.items())):
            Embedder(*built, **options)


@pytest.mark.parametrize("source", ["image", "window", "crop", "both"])
@pytest.mark.parametrize(
    "box",
    [[300, 10, 320, 20], [-9, 0, -1, 5], [5, 5, 5, 9], [5, 5, 9, float("nan")], [1, 2, 3], [0, 90, 9, 80]],
)
def test_a_box_that_is_not_a_box_of_its_image_is_refused_by_every_source(built, source, box):
    row = {"image": Image.new("RGB", (100, 80)), "boxes": [[0, 0, 9, 9], box]}
    embedder = Embedder(*built)
    for embed in (embedder.embed_regions, embedder.embed_rows):
        with refuses("rows[1]['boxes'][1]"):
            embed([row | {"boxes": []}, row], source)


@pytest.mark.parametrize("source", ["image", "window"])
@pytest.mark.parametrize(
    "quad",
    [
        [[5, 5], [40, 40], [40, 5], [5, 40]],
        [[5, 5], [9, 9], [5, 5], [9, 9]],
        [[-9, 0], [-1, 0], [-1, 5], [-9, 5]],
    ],
)
def test_a_quad_that_is_no_oriented_box_is_refused(built, source, quad):
    good = [[0, 0], [9, 0], [9, 9], [0, 9]]
    row = {
        "image": Image.new("RGB", (100, 80)),
        "boxes": [[0, 0, 9, 9], [5, 5, 40, 40]],
        "quads": [good, quad],
    }
    with refuses("rows[0]['quads'][1]"):
        Embedder(*built).embed_regions([row], source, form="quads")


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_model_of_zeros_or_nan_embeds_nothing(model, processor, rows, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    embedder = Embedder(model, processor)
    for embed in (
        lambda: embedder.embed_images([rows[0]["image"]]),
        lambda: embedder.embed_text(["a ship"]),
        lambda: embedder.embed_concepts("ship"),
        lambda: embedder.embed_regions(rows),
        lambda: embedder.embed_rows([rows[0]]),
    ):
        with refuses("zero, NaN or infinite"):
            embed()


def test_views_hold_one_image_or_one_window_each():
    row = {"image": Image.new("RGB", (300, 200)), "boxes": [[100, 60, 120, 70], [10, 10, 110, 60]]}
    empty = row | {"boxes": []}
    (whole,) = list_views([empty, row], "image", None)
    assert whole["image"] is row["image"] and whole["boxes"] == row["boxes"]
    first, second = list_views([row, empty], "window", 3.0)
    assert first["image"].size == (60, 60) and first["boxes"] == [[20, 25, 40, 35]]
    assert second["image"].size == (300, 200) and second["boxes"] == [[10, 10, 110, 60]]


def test_the_default_context_depends_on_the_source():
    usual = {source: resolve_context(source, None) for source in ("image", "window", "crop", "both")}
    assert usual == {"image": None, "window": 3.0, "crop": 1.5, "both": 1.5}
    assert resolve_context("crop", 1.0) == 1.0 and resolve_context("image", 2.0) is None


def test_an_unknown_source_and_a_context_that_cuts_the_box_are_refused():
    with refuses("region_source is 'roi'; it must be one of ('image', 'window', 'crop', 'both')."):
        resolve_context("roi", None)
    with refuses("context is 0.5; it must be at least 1, or windows would cut into their boxes."):
        resolve_context("window", 0.5)


@pytest.mark.parametrize("size", [(300, 200), (31, 400), (17, 13)])
@pytest.mark.parametrize("context", [1.0, 1.5, 3.0, 50.0])
def test_the_window_holds_the_box_and_lies_inside_the_image(size, context):
    generator = torch.Generator().manual_seed(0)
    limit = torch.tensor(size, dtype=torch.float64)
    for _ in range(200):
        corners = torch.rand(2, 2, generator=generator, dtype=torch.float64).sort(dim=0).values * limit
        box = corners.flatten().tolist()
        left, top, right, bottom = find_window(box, size, context)
        assert 0 <= left <= box[0] and box[2] <= right <= size[0]
        assert 0 <= top <= box[1] and box[3] <= bottom <= size[1]
        side = context * max(box[2] - box[0], box[3] - box[1])
        # Rounding outward adds less than a pixel at either end.
        assert min(side, size[0]) <= right - left < min(side, size[0]) + 2
        assert min(side, size[1]) <= bottom - top < min(side, size[1]) + 2


def test_windows_are_those_worked_out_by_hand():
    assert find_window([100, 60, 120, 70], (300, 200), 3.0) == (80, 35, 140, 95)
    assert find_window([0, 0, 20, 10], (300, 200), 3.0) == (0, 0, 60, 60)  # moved inside
    assert find_window([280, 195, 300, 200], (300, 200), 3.0) == (240, 140, 300, 200)
    assert find_window([10, 10, 110, 60], (300, 200), 3.0) == (0, 0, 300, 200)  # cut to the image


def test_the_window_of_a_box_that_reaches_outside_is_that_of_the_part_inside():
    assert find_window([-90, 10, 20, 30], (300, 200), 2.0) == find_window([0, 10, 20, 30], (300, 200), 2.0)
    assert find_window([280, 190, 999, 400], (300, 200), 2.0) == (260, 160, 300, 200)
    for beside in ([-90, -50, -9, -2], [400, 300, 410, 310]):  # a scene's regions may be there
        left, top, right, bottom = find_window(beside, (300, 200), 2.0)
        assert 0 <= left < right <= 300 and 0 <= top < bottom <= 200


# State


@pytest.mark.parametrize("was_training", [True, False])
def test_the_model_is_in_evaluation_mode_during_a_call_and_restored_afterwards(
    model, processor, rows, was_training
):
    model.train(was_training)
    modes = []
    for tower in (model.vision_model, model.text_model):
        tower.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    embedder = Embedder(model, processor)
    embedder.embed_images(rows["image"])
    embedder.embed_regions(rows)
    embedder.embed_text(["a ship"])
    list(embedder.embed_patches(rows["image"]))
    assert len(modes) == 4 and not any(modes) and model.training == was_training


def test_the_mode_of_the_model_is_restored_after_an_error(model, processor):
    model.train()
    model.embed_text = lambda **inputs: SimpleNamespace()["nothing"]
    with pytest.raises(TypeError):
        Embedder(model, processor).embed_text(["a ship"])
    assert model.training


def test_jpeg_drafts_change_embeddings_little_and_keep_other_images(built, toy_rows, tmp_path):
    toy_rows[0]["image"].resize((512, 400)).save(tmp_path / "large.jpg")
    images = [tmp_path / "large.jpg", toy_rows[1]["image"]]
    full, draft = (Embedder(*built, draft_jpeg=is_draft).embed_images(images) for is_draft in (False, True))
    assert 0 < (full[0] - draft[0]).norm() < 0.05
    torch.testing.assert_close(full[1], draft[1], rtol=0, atol=0)
