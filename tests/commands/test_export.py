"""`geoalign-hf export`: the towers in ONNX give what the model gives."""

import onnxruntime
import pytest
import torch
from transformers import AutoProcessor


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
def test_oriented_boxes_and_the_value_path_are_exported_too(model, processor, tmp_path, geoalign):
    model.config.dense_mode = "value"
    model.save_pretrained(tmp_path / "value")
    processor.save_pretrained(tmp_path / "value")
    printed = geoalign("export", "--model", "value", "--region_form", "quads")
    assert printed.count("differs from the model by at most") == 3
