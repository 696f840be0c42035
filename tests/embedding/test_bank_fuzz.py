"""Generated files of concept banks: what was saved comes back, and a damaged file is refused by its name."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoalign_hf.embedding.concept_bank import ConceptBank

BANK = ConceptBank(["ship", "storage tank"], torch.eye(2, 3), ("a {}", "{} from above"))
SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1) | st.text(max_size=4)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)


def check(path) -> None:
    try:
        bank = ConceptBank.load(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert bank.embeds.ndim == 2 and len(bank.embeds) == len(bank.concepts) and bank.embeds.isfinite().all()
    assert all(isinstance(text, str) for text in (*bank.concepts, *bank.templates))


@given(
    st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=4),
    st.lists(st.text(st.characters(codec="utf-8")), max_size=3),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_a_saved_bank_survives_a_round_trip(tmp_path, concepts, templates, dtype):
    embeds = torch.randn(len(concepts), 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    ConceptBank(concepts, embeds, tuple(templates)).save(tmp_path / "bank.safetensors")
    loaded = ConceptBank.load(tmp_path / "bank.safetensors")
    assert torch.equal(loaded.embeds, embeds) and loaded.embeds.dtype == dtype
    assert (loaded.concepts, loaded.templates) == (concepts, tuple(templates))


@given(st.data())
def test_a_file_with_changed_bytes_is_a_bank_or_is_refused(tmp_path, data):
    path = tmp_path / "bank.safetensors"
    BANK.save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    check(path)


@given(st.dictionaries(st.sampled_from(["concepts", "templates", "more"]), VALUES), st.booleans())
def test_a_file_with_other_metadata_is_a_bank_or_is_refused(tmp_path, metadata, is_plain):
    path = tmp_path / "bank.safetensors"
    texts = {name: value if is_plain else json.dumps(value) for name, value in metadata.items()}
    header = {"__metadata__": texts, "embeds": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + struct.pack("<6f", *[0.5] * 6))
    check(path)


@pytest.mark.parametrize("content", [b"", b"not a bank", b"[" * 100_000, bytes(8), b"\xff" * 64])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "bank.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="bank.safetensors"):
        ConceptBank.load(tmp_path / "bank.safetensors")


@pytest.mark.parametrize(
    "embeds",
    [
        torch.ones(3, 2),
        torch.ones(2),
        torch.ones(2, 2, 2),
        torch.tensor([[1.0], [float("nan")]]),
        torch.ones(2, 2).int(),
        torch.tensor([[1.0, 0.0], [0.0, -0.0]]),
    ],
)
def test_a_bank_with_other_embeds_is_refused(embeds):
    with pytest.raises(ValueError, match="embeds"):
        ConceptBank(["ship", "road"], embeds)
