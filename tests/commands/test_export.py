"""`geoalign-hf export`: the towers in ONNX give what the model gives."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoProcessor

from geoalign_hf.commands import export as export_command

TOWERS = ("image", "text", "region")


@pytest.mark.slow
def test_exported_towers_say_what_the_model_says(folder, built, toy_rows, tmp_path, geoalign):
    printed = geoalign("export", "--model", folder)
    assert printed.count("differs from the model by at most") == 3
    onnx = tmp_path / "outputs" / "onnx"
    processor = AutoProcessor.from_pretrained(onnx)
    images, boxes = [row["image"] for row in toy_rows], [row["boxes"] for row in toy_rows]
    texts = [row["captions"][0] for row in toy_rows]
    batch = processor(images=images, boxes=boxes, text=texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = built[0](**batch)
    for name in ("image", "text", "region"):
        session = onnxruntime.InferenceSession(onnx / f"{name}.onnx", providers=["CPUExecutionProvider"])
        inputs = {entry.name: batch[entry.name].numpy() for entry in session.get_inputs()}
        (found,) = session.run([f"{name}_embeds"], inputs)
        assert found == pytest.approx(expected[f"{name}_embeds"].numpy(), abs=1e-4)


@pytest.mark.slow
def test_towers_of_8_bits_rank_as_the_model_does(folder, built, toy_rows, tmp_path, geoalign):
    printed = geoalign("export", "--model", folder, "--quantize", "int8")
    assert printed.count("cosine with the model at least") == 3
    onnx = tmp_path / "outputs" / "onnx"
    parity = json.loads((onnx / "parity.json").read_text())
    assert {name for name in parity if "int8" in name} == {f"{name}.int8.onnx" for name in TOWERS}
    assert all(entry.get("smallest_cosine", 1) > 0.99 for entry in parity.values())
    texts = sorted({row["captions"][0] for row in toy_rows})
    batch = built[1](text=texts, return_tensors="pt", padding=True)
    session = onnxruntime.InferenceSession(onnx / "text.int8.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {entry.name: batch[entry.name].numpy() for entry in session.get_inputs()})
    with torch.no_grad():
        expected = built[0].embed_text(batch["input_ids"], batch["attention_mask"]).numpy()
    assert (found @ expected.T).argmax(axis=1).tolist() == list(range(len(texts)))
    assert (onnx / "text.int8.onnx").stat().st_size < (onnx / "text.onnx").stat().st_size


def test_a_tower_that_8_bits_spoil_is_refused(monkeypatch, tmp_path):
    spoilt = [((1, 1), np.float32([[0.0, 1.0]]), np.float32([[1.0, 0.0]]))]
    monkeypatch.setattr(export_command, "run_both", lambda *_: iter(spoilt))
    with pytest.raises(ValueError, match="cosine of 0.000.*0.95"):
        export_command.compare_cosines(None, tmp_path / "text.int8.onnx", None)


@pytest.mark.slow
def test_oriented_boxes_and_the_value_path_are_exported_too(model, processor, tmp_path, geoalign):
    model.config.dense_mode = "value"
    model.save_pretrained(tmp_path / "value")
    processor.save_pretrained(tmp_path / "value")
    printed = geoalign("export", "--model", "value", "--region_form", "quads")
    assert printed.count("differs from the model by at most") == 3
