"""Laws of the picture of a run."""

from PIL import Image

from geoalign_hf.training.curves import draw_curves


def test_every_named_number_that_was_logged_twice_gets_its_panel(tmp_path):
    records = [{"step": step, **{f"term {k}": step * k for k in range(5)}} for step in range(1, 4)]
    names = [f"term {k}" for k in range(3)]
    draw_curves([*records, {"step": 3, "once": 0.5}], tmp_path / "curves.png", [*names, "once", "never"])
    draw_curves(records, tmp_path / "three.png", names)
    draw_curves(records, tmp_path / "one.png", names[:1])
    assert (tmp_path / "curves.png").read_bytes() == (tmp_path / "three.png").read_bytes()
    assert Image.open(tmp_path / "three.png").width == 3 * Image.open(tmp_path / "one.png").width


def test_a_run_without_numbers_has_a_picture_too(tmp_path):
    draw_curves([], tmp_path / "curves.png", ["loss"])
    assert Image.open(tmp_path / "curves.png").width > 0
