"""Laws of packing: no token is lost or moved, and packed texts are embedded as if each were alone."""

import re

import pytest
import torch

from geoalign_hf.model.packing_geoalign_clip import locate_texts, pack_texts


def draw_texts(num: int, longest: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (num,), generator=generator).tolist()
    return [[1, *torch.randint(3, 90, (length - 2,), generator=generator).tolist(), 2] for length in lengths]


@pytest.mark.parametrize(("num", "longest"), [(1, 2), (1, 9), (7, 5), (200, 40)])
def test_every_text_is_there_once_whole_and_in_reading_order(num, longest):
    texts = draw_texts(num, longest)
    input_ids, text_ids, order = pack_texts(texts, pad_token_id=99)
    assert sorted(order.tolist()) == list(range(num))
    for n, t in enumerate(order.tolist()):
        assert input_ids[text_ids == n].tolist() == texts[t]
    flat = text_ids[text_ids >= 0]
    assert (flat.diff() >= 0).all()
    assert (input_ids[text_ids < 0] == 99).all()
    assert input_ids.shape[1] == max(map(len, texts))


def test_texts_of_mixed_lengths_leave_little_padding():
    _, text_ids, _ = pack_texts(draw_texts(300, 60))
    assert (text_ids < 0).float().mean() < 0.05


def test_positions_attention_and_ends_are_those_of_each_text_alone():
    texts = draw_texts(30, 12)
    input_ids, text_ids, order = pack_texts(texts)
    position_ids, attention_mask, ends = locate_texts(text_ids)
    for n, t in enumerate(order.tolist()):
        row, places = (text_ids == n).nonzero(as_tuple=True)
        length = len(texts[t])
        assert position_ids[row, places].tolist() == list(range(length))
        assert ends[n] == row[-1] * text_ids.shape[1] + places[-1]
        seen = attention_mask[row[0], 0, places]  # (length, L)
        assert torch.equal(seen[:, places], torch.ones(length, length).tril().bool())
        assert seen.sum() == length * (length + 1) / 2
    assert attention_mask.any(dim=-1).all()  # padding sees padding: no softmax over nothing


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_texts_have_the_embeddings_and_gradients_of_padded_ones(model, processor, toy_rows, attention):
    words = [text for row in toy_rows for text in [*row["captions"], *row["phrases"], row["description"]]]
    tokens = processor(text=words, truncation=True)["input_ids"]
    input_ids, text_ids, order = pack_texts(tokens, processor.tokenizer.pad_token_id)
    padded = processor(text=words, truncation=True, padding=True, return_tensors="pt")
    model.set_attn_implementation(attention)
    direction = torch.randn(len(words), 32, generator=torch.Generator().manual_seed(0))
    results = []
    for inputs, by in (({"input_ids": input_ids, "text_ids": text_ids}, order), (padded, slice(None))):
        model.zero_grad()
        embeds = model(**inputs).text_embeds
        (embeds * direction[by]).sum().backward()
        grads = [parameter.grad.clone() for parameter in model.text_model.parameters()]
        results.append((embeds.detach(), torch.cat([grad.flatten() for grad in grads])))
    (packed, packed_grads), (alone, grads) = results
    torch.testing.assert_close(packed, alone[order], rtol=0, atol=1e-6)
    assert (packed_grads - grads).norm() < 1e-5 * grads.norm()


def test_rows_of_padding_alone_give_no_text_and_zero_gradients(model):
    text_ids = torch.full((2, 5), -100)
    embeds = model(input_ids=torch.zeros_like(text_ids), text_ids=text_ids).text_embeds
    assert embeds.shape == (0, 32)
    embeds.sum().backward()
    assert all((parameter.grad == 0).all() for parameter in model.text_model.parameters())


def test_no_text_is_refused():
    for texts, message in (
        ([], "there are 0 texts, and 0 of them are empty. Every text needs tokens."),
        ([[1, 2], []], "there are 2 texts, and 1 of them are empty. Every text needs tokens."),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            pack_texts(texts)


def test_an_attention_that_cannot_keep_texts_apart_is_refused(model):
    model.text_model.config._attn_implementation = "flash_attention_2"
    message = (
        "packed texts need the attention sdpa or eager, but the text tower uses 'flash_attention_2'. "
        'Load the model with attn_implementation={"text_config": "sdpa"}.'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model(input_ids=torch.ones(1, 2, dtype=torch.long), text_ids=torch.zeros(1, 2, dtype=torch.long))
