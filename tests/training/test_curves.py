"""Laws of the picture of a run."""

from PIL import Image

from geoalign_hf.training.curves import draw_curves


def test_every_number_gets_its_panel(tmp_path):
    records = [{"step": step, **{f"term {k}": step * k for k in range(5)}} for step in range(1, 4)]
    draw_curves([*records, {"step": 3, "eval": 0.5}], tmp_path / "curves.png")
    few = Image.open(tmp_path / "curves.png")
    draw_curves([{"step": 1, "loss": 1.0}], tmp_path / "one.png")
    assert few.width > 3 * Image.open(tmp_path / "one.png").width


def test_a_run_without_numbers_has_a_picture_too(tmp_path):
    draw_curves([], tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width > 0
