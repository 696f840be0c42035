"""Laws of the history: every record survives, those of a cut-off run do not, and all become a picture."""

from PIL import Image

from geoalign_hf.training.history import History, draw_curves, read_records


def test_records_are_read_back_in_order(tmp_path):
    history = History(tmp_path / "history.jsonl", None, is_written=True)
    history.add(1, {"loss": 2.5})
    history.add(2, {"loss": 1.5, "scene": 0.5})
    assert read_records(history.path) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.5, "scene": 0.5}]
    assert read_records(tmp_path / "missing") == []


def test_a_resumed_run_keeps_the_records_up_to_its_checkpoint(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')  # killed in the middle of a line
    history = History(path, 2, is_written=True)
    history.add(3, {"loss": 1.0})
    assert read_records(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 1.0}]


def test_another_run_in_the_same_folder_starts_anew(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n')
    History(path, None, is_written=True)
    assert read_records(path) == []


def test_only_the_main_process_writes(tmp_path):
    History(tmp_path / "history.jsonl", None, is_written=False).add(1, {})
    assert not (tmp_path / "history.jsonl").exists()


def test_every_number_gets_its_panel(tmp_path):
    records = [{"step": step, **{f"term {k}": step * k for k in range(5)}} for step in range(1, 4)]
    draw_curves([*records, {"step": 3, "eval": 0.5}], tmp_path / "curves.png")
    few = Image.open(tmp_path / "curves.png")
    draw_curves([{"step": 1, "loss": 1.0}], tmp_path / "one.png")
    assert few.width > 3 * Image.open(tmp_path / "one.png").width
