"""Laws of the model from nothing: its tokenizer can write any text, its parts fit together."""

import re
import unicodedata

import pytest
import torch

from geoalign_hf.convert.from_scratch import build_model, train_tokenizer

TEXTS = ["a ship at a pier", "two ships on water", "a large green storage tank", "a road"] * 3
STRANGE = [
    "Ünïcödé façade", "船が二隻", "корабль", "سفينة", "🚢🛳️👩‍✈️", "a\u200db\u00a0c", "\x00\x07\x7f", "ﬁ ½ ™ Å",
    "e\u0301", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "\U0010ffff\ufffd", "tab\tand\nline", "</w> ## <unk> [UNK]", "'", "123456789",
    "~`!@#$%^&*()_+-=[]{}|;:\",./<>?", "İ ß ς",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS)


@pytest.mark.parametrize("text", STRANGE)
def test_any_text_is_written_without_an_unknown_token(tokenizer, text):
    ids = tokenizer(text).input_ids
    # CLIP's unknown token is its end token, so it must stand at the end alone.
    assert tokenizer.unk_token_id == tokenizer.eos_token_id
    assert ids.index(tokenizer.eos_token_id) == len(ids) - 1
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


def test_every_character_is_written_without_an_unknown_token(tokenizer):
    points = [*range(0x3000), *range(0xAC00, 0xAD00), *range(0xFB00, 0xFFFE), *range(0x1F300, 0x1FAFF)]
    characters = [chr(point) for point in points]
    for ids in tokenizer(characters, add_special_tokens=False).input_ids:
        assert tokenizer.eos_token_id not in ids


@pytest.mark.parametrize(
    "text", ["a ship at a pier", "A Large GREEN tank", "zzyzx qwerty", "a", "two  ships\ton water"]
)
def test_ascii_words_come_back_in_lower_case(tokenizer, text):
    decoded = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
    assert decoded.strip() == " ".join(text.lower().split())


def test_all_printable_ascii_comes_back_in_lower_case_but_for_spaces(tokenizer):
    text = "".join(map(chr, range(33, 127)))
    decoded = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
    assert decoded.replace(" ", "") == text.lower()


@pytest.mark.parametrize("text", ["größe", "корабль", "船が二隻", "🚢", "½"])
def test_other_scripts_come_back_too(tokenizer, text):
    decoded = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
    assert decoded.replace(" ", "") == unicodedata.normalize("NFC", text).lower()


def test_known_words_take_one_token_each_and_unknown_ones_more(tokenizer):
    assert tokenizer.tokenize("two ships on water") == ["two</w>", "ships</w>", "on</w>", "water</w>"]
    assert len(tokenizer.tokenize("zzyzx")) == 5


def test_the_vocabulary_keeps_within_its_size_and_never_falls_below_the_bytes():
    texts = [f"{first}{second}{third}" for first in "abcdef" for second in "ghijkl" for third in "mnopqr"]
    for vocab_size in (0, 514, 600, 800):
        tokenizer = train_tokenizer(texts * 2, vocab_size=vocab_size)
        assert 514 <= len(tokenizer) <= max(514, vocab_size)


def test_token_ids_are_0_to_the_size_of_the_vocabulary(tokenizer):
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_the_same_texts_give_the_same_tokenizer():
    # All pairs of letters are equally frequent, so what is merged first hangs on how ties are broken.
    texts = [f"{first}{second}" for first in "abcdefgh" for second in "ijklmnop"]
    first, *others = (train_tokenizer(iter(texts)).get_vocab() for _ in range(4))
    assert others == [first] * 3


def test_saved_and_loaded_the_tokenizer_writes_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    for text in [*TEXTS, *STRANGE]:
        assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.model_max_length == tokenizer.model_max_length == 77


def test_model_and_processor_fit_together():
    sizes = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 1, "text_width": 64, "text_depth": 1}
    model, processor = build_model(TEXTS, **sizes, embed_dim=16)
    tokenizer, text = processor.tokenizer, model.config.text_config
    assert text.vocab_size == len(tokenizer)
    assert (text.bos_token_id, text.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert text.max_position_embeddings == tokenizer.model_max_length
    batch = processor(
        images=torch.zeros(3, 50, 70, dtype=torch.uint8), boxes=[[[0, 0, 9, 9]]], text=["x", "a ship"],
        padding=True, return_tensors="pt",
    )  # fmt: skip
    output = model(**batch)
    assert batch["pixel_values"].shape == (1, 3, 32, 32)
    assert output.logits_per_region.shape == (1, 1, 2) and output.region_embeds.shape == (1, 1, 16)


def test_a_convolutional_stem_gives_the_same_grid_of_patches_and_comes_back_from_its_folder(tmp_path):
    sizes = {"width": 64, "depth": 1, "text_width": 64, "text_depth": 1, "embed_dim": 16}
    pixels = torch.rand(2, 3, 32, 32)
    for patch_size in (8, 16):
        model, _ = build_model(TEXTS, 32, patch_size, **sizes, stem="convolution")
        assert model.get_patch_features(pixels).shape == (2, 16, 32 // patch_size, 32 // patch_size)
    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded.embed_images(pixels), model.embed_images(pixels))


def test_a_text_is_read_at_its_end_token_wherever_padding_begins(built):
    model, processor = built
    alone = processor(text=["a ship"], return_tensors="pt")
    padded = processor(text=["a ship", "a long row of words to pad to"], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            model.embed_text(**padded)[0], model.embed_text(**alone)[0], rtol=0, atol=1e-6
        )
        different = model.embed_text(
            **processor(text=["a ship", "a road"], padding=True, return_tensors="pt")
        )
    assert (different[0] - different[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "value", "factor"), [("width", 100, 64), ("text_width", 96, 64), ("image_size", 225, 16)]
)
def test_a_size_that_does_not_divide_is_refused(name, value, factor):
    with pytest.raises(
        ValueError, match=f"^{re.escape(f'{name} is {value}; it must be a multiple of {factor}.')}$"
    ):
        build_model(TEXTS, **{name: value})
