"""The tables of the ablation: differences are paired by seed and picture."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "benchmarks"))

from ablation_table import COLUMNS, compare_cells, make_tables


def make_cell(row: str, hits: list[int], seed: int = 0, arm: str = "all") -> dict:
    scores = dict.fromkeys(COLUMNS, sum(hits) / len(hits))
    return {"row": row, "arm": arm, "seed": seed, "hits": hits, "pictures": [0, 0, 1, 3], "scores": scores}


def test_a_difference_is_the_mean_over_regions_and_its_interval_comes_from_pictures():
    right, half = make_cell("a", [1, 1, 1, 1]), make_cell("b", [0, 1, 1, 0])
    center, low, high = compare_cells([right, right], [half, half])
    assert center == 50
    assert 0 <= low < 50 < high <= 100


def test_equal_cells_differ_by_nothing_however_much_seeds_differ():
    cells = [make_cell("a", [1, 0, 0, 0], 0), make_cell("a", [1, 1, 1, 1], 1)]
    assert compare_cells(cells, cells) == (0, 0, 0)


def test_the_table_gives_mean_and_spread_and_the_difference_from_full(tmp_path):
    cells = [make_cell("full", hits, seed) for seed, hits in enumerate(([1, 1, 1, 1], [1, 1, 0, 0]))]
    cells += [make_cell("scene", [0, 0, 0, 0], seed) for seed in (0, 1)]
    lines = make_tables(cells, tmp_path / "table.png").splitlines()
    assert lines[2].startswith("| full | 75.0 ± 35.4 |")
    assert lines[3].startswith("| scene | 0.0 ± 0.0 |")
    assert "| -75.0 [" in lines[3]
    assert (tmp_path / "table.png").exists()


def test_what_a_term_adds_has_a_table_of_its_own_with_a_column_for_each_arm(tmp_path):
    cells = []
    for arm in ("all", "tenth"):
        cells += [make_cell("scene + concept", [1, 1, 1, 1], seed, arm) for seed in (0, 1)]
        cells += [make_cell("concept", [0, 0, 0, 0], seed, arm) for seed in (0, 1)]
    lines = make_tables(cells, tmp_path / "table.png").splitlines()
    assert lines[-3] == "| region micro | all | tenth |"
    assert lines[-1] == (
        "| scene + concept against concept | +100.0 [+100.0, +100.0] | +100.0 [+100.0, +100.0] |"
    )


def test_rows_with_other_seeds_are_not_compared():
    with pytest.raises(ValueError):
        compare_cells([make_cell("a", [1, 1, 1, 1])], [])
