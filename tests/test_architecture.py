"""The house rules of the tree, read from the sources: who imports whom, and which door a dependency uses."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "geoalign_hf"
SHIPPED = ("configuration", "packing", "regions", "scales", "modeling", "processing", "pipeline")

# What each file may import from ours, and nothing else.
MAY_IMPORT = {
    "configuration": set(),
    "regions": set(),
    "pipeline": set(),
    "packing": set(),
    "scales": set(),
    "modeling": {"configuration", "packing", "regions", "pipeline", "scales"},
    "processing": {"regions"},
    "metrics": set(),
    "score_maps": set(),
    "metric_modules": {"metrics", "score_maps"},
    "distributed": set(),
    "files": set(),
    "history": {"files"},
    "checkpoints": {"cards"},
    "launch": {"checkpoints"},
    "adapters": set(),
    "contrast": {"distributed"},
    "losses": {"contrast", "distributed"},
    "steps": {"collator", "distributed", "losses", "packing"},
    "words": set(),
    "report": set(),
    "sources": {"regions", "report", "words"},
    "readers": {"report", "sources"},
    "captions": {"report", "sources"},
    "rows": {"readers", "report", "words"},
    "augment": {"rows", "words"},
    "tiles": {"augment", "report"},
    "facts": {"words"},
    "describe": {"facts", "report", "words"},
    "negatives": {"facts", "words"},
    "leakage": {"captions", "readers", "rows", "sources"},
    "contact_sheet": set(),
    "shards": {"describe", "facts", "files", "leakage", "negatives", "report", "rows", "tiles"},
    "build": {
        "captions",
        "cards",
        "contact_sheet",
        "files",
        "leakage",
        "readers",
        "report",
        "rows",
        "shards",
        "tiles",
    },
    "sampling": {"rows"},
    "collator": {"packing", "processing"},
    "concepts": {"modeling", "processing"},
    "scratch": {"configuration", "modeling", "processing"},
    "open_clip_layout": set(),
    "convert": {"configuration", "modeling", "open_clip_layout", "processing"},
    "cards": {"files", "pipeline"},
    "hub": {"cards", "files"},
    "figures": set(),
    "embedding": {"augment"},
    "embedding_shards": {"checkpoints", "embedding", "files", "readers", "report", "rows", "sources"},
    "evaluation": {"concepts", "embedding", "files", "metrics", "processing", "rows"},
    "retrieval": {"embedding", "evaluation", "metrics"},
    "localization": {"embedding", "evaluation", "score_maps"},
    "few_shot": {"adapters", "augment", "losses", "metrics", "rows", "training", "words"},
    "training": {
        "cards",
        "checkpoints",
        "collator",
        "distributed",
        "files",
        "history",
        "launch",
        "losses",
        "processing",
        "rows",
        "sampling",
        "steps",
    },
}
# The only files that may import a dependency.
DOORS = {
    "datasets": {"rows", "metric_modules", "embedding_shards"},
    "evaluate": {"metric_modules"},
    "safetensors": {"concepts", "hub", "open_clip_layout"},
    "accelerate": {"launch", "steps", "training"},
    "peft": {"adapters"},
    "rasterio": {"scenes"},
    "yaml": {"readers"},
    "huggingface_hub": {"cards", "hub", "configuration"},
}


def shorten(path: Path) -> str:
    return path.stem.removesuffix("_geoalign_clip")


def list_sources() -> dict[str, Path]:
    return {shorten(path): path for path in PACKAGE.rglob("*.py") if path.stem != "__init__"}


def read_imports(path: Path) -> list[tuple[int, str]]:
    """Level and module of every import statement, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
        elif isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
    return found


def test_every_file_has_its_place_in_the_table():
    assert set(list_sources()) == set(MAY_IMPORT)


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_arrows_go_one_way(name):
    ours = {
        shorten(Path(module.split(".")[-1]))
        for level, module in read_imports(list_sources()[name])
        if module and (level or module.startswith("geoalign_hf"))  # the package itself holds its version
    }
    assert ours <= MAY_IMPORT[name]


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_each_dependency_comes_in_by_its_door(name):
    for level, module in read_imports(list_sources()[name]):
        doors = DOORS.get(module.split(".")[0])
        if level == 0 and doors is not None:
            assert name in doors, module


@pytest.mark.parametrize("name", SHIPPED)
def test_the_room_that_ships_needs_torch_and_transformers_alone(name):
    allowed = {"torch", "transformers", "numpy", "PIL", "huggingface_hub"} | sys.stdlib_module_names
    for level, module in read_imports(list_sources()[name]):
        if level:
            assert level == 1
            assert "." not in module
        else:
            assert module.split(".")[0] in allowed


def test_no_file_has_become_two_stops():
    for path in list_sources().values():
        assert len(path.read_text().splitlines()) <= 400, path


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path):
    limit = 400 if path.stem == "toy_rows" else 150  # drawings take their lines
    assert len(path.read_text().splitlines()) <= limit


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_imports_nothing_heavy():
    heavy = "torch transformers datasets evaluate peft accelerate matplotlib"
    code = f"import sys, geoalign_hf; print([name for name in {heavy.split()} if name in sys.modules])"
    assert run(code).strip() == "[]"


@pytest.mark.parametrize(
    "first",
    [
        "import geoalign_hf",
        pytest.param("import geoalign_hf; from transformers import CLIPModel", marks=pytest.mark.slow),
        pytest.param("import geoalign_hf; from transformers import pipeline", marks=pytest.mark.slow),
        "import geoalign_hf; import peft",
        pytest.param("from geoalign_hf import GeoAlignCLIPProcessor", marks=pytest.mark.slow),
        pytest.param(
            "from geoalign_hf.model.modeling_geoalign_clip import GeoAlignCLIPModel", marks=pytest.mark.slow
        ),
        "from transformers import AutoModel, pipeline; import geoalign_hf",
    ],
)
def test_in_whatever_order_things_are_imported_our_classes_are_registered(first):
    code = f"""
{first}
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer
from transformers import AutoModelForZeroShotImageClassification
from transformers.pipelines import PIPELINE_REGISTRY
import geoalign_hf
config = AutoConfig.for_model("geoalign_clip")
assert type(config) is geoalign_hf.GeoAlignCLIPConfig
assert AutoModel._model_mapping[type(config)] is geoalign_hf.GeoAlignCLIPModel
assert AutoModelForZeroShotImageClassification._model_mapping[type(config)] is geoalign_hf.GeoAlignCLIPModel
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
assert PROCESSOR_MAPPING[type(config)] is geoalign_hf.GeoAlignCLIPProcessor
assert type(config) in TOKENIZER_MAPPING and type(config) in IMAGE_PROCESSOR_MAPPING
assert "zero-shot-region-classification" in PIPELINE_REGISTRY.get_supported_tasks()
"""
    run(code)


@pytest.mark.slow
def test_importing_the_package_takes_no_longer_than_transformers_and_a_bit():
    def time_import(name: str) -> float:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            run(f"import {name}")
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    assert time_import("geoalign_hf") < time_import("transformers") + 0.3
