"""Laws of concept embeddings: templates, and the bank."""

import json
from inspect import signature

import pytest
import torch
from refusals import refuses
from safetensors.torch import save_file
from torch.nn.functional import normalize
from transformers import ZeroShotImageClassificationPipeline

from geoalign_hf.captioning.grammar import spell_concept
from geoalign_hf.embedding.concept_bank import ConceptBank
from geoalign_hf.embedding.templates import TEMPLATE_SETS, resolve_templates
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES

CONCEPTS = ["ship", "storage tank", "road", "tennis court", "airplane"]


@pytest.fixture(scope="module")
def bank(built):
    return ConceptBank.build(*built, CONCEPTS)


def test_every_concept_is_a_unit_vector(bank):
    torch.testing.assert_close(bank.embeds.norm(dim=-1), torch.ones(5), rtol=0, atol=1e-6)


def test_the_bank_holds_what_the_model_embeds(bank, model, processor):
    tokens = processor.tokenize_concepts(CONCEPTS, CONCEPT_TEMPLATES)
    with torch.no_grad():
        assert torch.equal(bank.embeds, model.embed_concepts(**tokens))
    assert bank.concepts == CONCEPTS and bank.templates == CONCEPT_TEMPLATES


def test_a_concept_is_the_mean_of_its_templates_at_unit_length(model, processor):
    templates = ("a {}", "many of {} from above", "{}")
    bank = ConceptBank.build(model, processor, ["ship", "road"], templates)
    for concept, embed in zip(bank.concepts, bank.embeds, strict=True):
        texts = [template.replace("{}", concept) for template in templates]
        with torch.no_grad():
            each = [
                normalize(model.get_text_features(**processor(text=[text], return_tensors="pt"))[1][0], dim=0)
                for text in texts
            ]
        expected = normalize(sum(each) / 3, dim=0)
        torch.testing.assert_close(embed, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_size_of_batches_does_not_matter(bank, model, processor, batch_size):
    batched = ConceptBank.build(model, processor, CONCEPTS, batch_size=batch_size)
    torch.testing.assert_close(batched.embeds, bank.embeds, rtol=0, atol=1e-6)


def test_the_order_of_concepts_is_the_order_of_rows(bank, model, processor):
    backward = ConceptBank.build(model, processor, CONCEPTS[::-1])
    torch.testing.assert_close(backward.embeds.flip(0), bank.embeds, rtol=0, atol=1e-6)


def test_the_order_of_templates_does_not_matter(bank, model, processor):
    backward = ConceptBank.build(model, processor, CONCEPTS, CONCEPT_TEMPLATES[::-1])
    torch.testing.assert_close(backward.embeds, bank.embeds, rtol=0, atol=1e-6)


def test_a_bank_is_built_without_gradients_and_in_float32(model, processor):
    bank = ConceptBank.build(model.bfloat16(), processor, CONCEPTS)
    assert bank.embeds.dtype == torch.float32 and not bank.embeds.requires_grad


def test_a_loaded_bank_equals_the_saved_one(bank, tmp_path):
    odd = ConceptBank(
        ["Schiff, größer", 'a "quoted" 船', "", *CONCEPTS[:2]], bank.embeds, ("{} {{}}", "ü {}")
    )
    for saved in (bank, odd):
        saved.save(tmp_path / "bank.safetensors")
        loaded = ConceptBank.load(tmp_path / "bank.safetensors")
        assert torch.equal(loaded.embeds, saved.embeds)
        assert (loaded.concepts, loaded.templates) == (saved.concepts, saved.templates)


def test_a_bank_whose_rows_are_a_view_can_be_saved(bank, tmp_path):
    ConceptBank(CONCEPTS[::2], bank.embeds[::2]).save(tmp_path / "bank.safetensors")
    assert torch.equal(ConceptBank.load(tmp_path / "bank.safetensors").embeds, bank.embeds[::2])


def test_another_safetensors_file_is_refused(folder, tmp_path):
    lists = {"concepts": json.dumps(["ship"]), "templates": json.dumps(["{}"])}
    save_file({"embeds": torch.ones(1, 2)}, tmp_path / "bare.safetensors")
    save_file({"weights": torch.ones(1, 2), "bias": torch.ones(1)}, tmp_path / "other.safetensors", lists)
    for name, keys in (("bare", ["embeds"]), ("other", ["bias", "weights"])):
        path = tmp_path / f"{name}.safetensors"
        with refuses(str(path), "not a concept bank", str(keys)):
            ConceptBank.load(path)
    with refuses("model.safetensors", "not a concept bank"):
        ConceptBank.load(folder / "model.safetensors")


def test_repeated_names_are_refused(model, processor):
    with refuses("['road', 'ship']", "more than once"):
        ConceptBank.build(model, processor, ["ship", "road", "airplane", "road", "ship", "ship"])


def test_no_concepts_are_refused(model, processor):
    with refuses("concepts is []"):
        ConceptBank.build(model, processor, [])


def test_an_empty_name_is_refused(model, processor):
    with refuses("concepts[1] is empty"):
        ConceptBank.build(model, processor, ["ship", " "])


def test_a_template_without_braces_is_refused(model, processor):
    with refuses("templates[1] = 'a ship'", "{}"):
        ConceptBank.build(model, processor, ["ship"], ("a {}", "a ship"))


# Words


def test_every_set_has_different_templates_with_one_pair_of_braces_each():
    for name, templates in TEMPLATE_SETS.items():
        assert len(set(templates)) == len(templates), name
        assert all(template.count("{}") == 1 and template.format("x") for template in templates), name


def test_the_template_sets_have_the_documented_content():
    assert TEMPLATE_SETS["geoalign"] == CONCEPT_TEMPLATES
    assert TEMPLATE_SETS["clip"] == ("This is a photo of {}.",)
    assert TEMPLATE_SETS["skyscript"] == ("a satellite photo of {}.", "a satellite image of {}")
    assert len(TEMPLATE_SETS["overhead"]) == 90
    assert {"a satellite photo of a {}.", "{} in an aerial image."} < set(TEMPLATE_SETS["overhead"])


def test_the_set_clip_is_the_default_of_the_pipeline_of_transformers():
    preprocess = signature(ZeroShotImageClassificationPipeline.preprocess)
    assert (preprocess.parameters["hypothesis_template"].default,) == TEMPLATE_SETS["clip"]


def test_templates_are_resolved_by_name_or_passed_through():
    assert resolve_templates("skyscript") == TEMPLATE_SETS["skyscript"]
    assert resolve_templates(["a {}"]) == ("a {}",)


def test_an_unknown_set_is_refused():
    with refuses("'openai'", "['clip', 'geoalign', 'overhead', 'skyscript']"):
        resolve_templates("openai")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("storage_tanks", "storage tanks"),
        ("DenseResidential", "dense residential"),
        ("hRiverLake", "h river lake"),
        ("railway station", "railway station"),
        ("Permanent Crop Land", "permanent crop land"),
        ("  SUV/van__x ", "suv van x"),
    ],
)
def test_names_of_folders_are_spelled_as_words(name, words):
    assert spell_concept(name) == words
