"""The layout of the package, read from its sources: which directory may import which."""

import ast
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "geoalign_hf"

# What the modules of each directory (or of a file beside them) may import from the package.
MAY_IMPORT = {
    "storage": set(),
    "options": set(),
    "model": set(),
    "images": {"model", "options", "storage"},
    "losses": {"options"},
    "captioning": {"model", "storage"},
    "convert": {"model", "storage"},
    "hub": {"model", "options", "storage"},
    "readers": {"captioning", "images", "model", "storage"},
    "data": {"captioning", "images", "model", "options", "readers", "storage"},
    "embedding": {"captioning", "data", "hub", "images", "model", "readers", "storage"},
    "dataset_builder": {"captioning", "data", "hub", "images", "model", "options", "readers", "storage"},
    "detection": {"data", "embedding", "images", "model", "options", "readers", "storage"},
    "evaluation": {"captioning", "data", "detection", "embedding", "images", "model", "storage"},
    "scenes": {"captioning", "data", "detection", "embedding", "images", "model", "readers", "storage"},
    "training": {
        "captioning", "convert", "data", "embedding", "evaluation", "hub", "images", "losses", "model",
        "options", "storage",
    },
}  # fmt: skip
TOP = {"__init__", "__main__", "cli", "commands", "registration"}  # these may import everything

# The only places that may import a dependency that few users have, or that is slow to import.
MAY_USE = {
    "evaluate": {"evaluation"},
    "peft": {"training"},
    "accelerate": {"commands", "embedding", "training"},
    "geopandas": {"scenes"},
    "gradio": {"hub"},
    "pycocotools": {"evaluation"},
    "rasterio": {"images", "scenes"},
    "shapely": {"detection", "scenes"},
    "yaml": {"captioning", "data", "dataset_builder", "readers"},
}


def list_sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_place(path: Path) -> str:
    """The directory below the package that a module lies in, or the module's own name at the top."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def list_imports(path: Path) -> list[str]:
    """The absolute names of the modules that a file imports, wherever the statement stands."""
    package = (PACKAGE.name, *path.relative_to(PACKAGE).parent.parts)
    found = []
    for node in list_nodes(path):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            found += [module] if node.module else [f"{module}.{alias.name}" for alias in node.names]
    return found


@cache
def list_nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def name_source(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_every_module_lies_in_a_place_of_the_table():
    assert {name_place(path) for path in list_sources()} - TOP <= set(MAY_IMPORT)


def test_a_directory_may_import_only_from_directories_above_it_in_the_table():
    names = list(MAY_IMPORT)
    for name, allowed in MAY_IMPORT.items():
        assert allowed <= set(names[: names.index(name)]), name


@pytest.mark.parametrize("path", list_sources(), ids=name_source)
def test_imports_follow_the_table(path):
    place = name_place(path)
    if place in TOP:
        return
    for module in list_imports(path):
        first, *rest = module.split(".")
        if first == PACKAGE.name and rest and rest != ["__version__"]:
            assert rest[0] == place or rest[0] in MAY_IMPORT[place], module


@pytest.mark.parametrize("path", list_sources(), ids=name_source)
def test_a_dependency_is_imported_only_where_the_table_says(path):
    for module in list_imports(path):
        places = MAY_USE.get(module.split(".")[0])
        assert places is None or name_place(path) in places, module


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").glob("*_clip.py")), ids=lambda path: path.stem)
def test_the_package_that_ships_needs_only_torch_and_transformers(path):
    allowed = {"torch", "transformers", "numpy", "PIL", "huggingface_hub"} | sys.stdlib_module_names
    for node in list_nodes(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] in allowed
        elif isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] in allowed for alias in node.names)


@pytest.mark.parametrize("path", [*list_sources(), *(ROOT / "examples").rglob("*.py")], ids=str)
def test_one_place_opens_images(path):
    """`model.images_geoalign_clip` opens image files. A map in memory that was just encoded is no file.

    The page of a Space runs where the package is not installed, and opens images to show them.
    """
    if path.stem in ("image_files_geoalign_clip", "localization") or path.parent.name == "space":
        return
    calls = [ast.unparse(node.func) for node in list_nodes(path) if isinstance(node, ast.Call)]
    assert not {"Image.open", "PIL.Image.open", "load_image", "image_utils.load_image"} & set(calls)


@pytest.mark.parametrize("path", list_sources(), ids=name_source)
def test_a_module_is_at_most_400_lines_long(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_at_most_150_lines_long(path):
    limit = 400 if path.stem == "toy_rows" else 150  # drawing scenes takes its lines
    assert len(path.read_text().splitlines()) <= limit


def test_type_checkers_see_the_names_that_are_imported_on_first_use():
    import geoalign_hf

    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = [
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == geoalign_hf._LAZY
    assert set(seen) <= set(geoalign_hf.__all__)
    for name in geoalign_hf.__all__:
        assert getattr(geoalign_hf, name) is not None


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_does_not_import_what_only_some_tasks_need():
    names = "datasets evaluate peft matplotlib pycocotools sklearn rasterio shapely"
    code = f"import sys, geoalign_hf; print([name for name in {names.split()} if name in sys.modules])"
    assert run(code).strip() == "[]"


@pytest.mark.parametrize(
    "first",
    [
        "import geoalign_hf",
        pytest.param("from geoalign_hf import GeoAlignCLIPProcessor", marks=pytest.mark.slow),
        pytest.param(
            "from geoalign_hf.model.modeling_geoalign_clip import GeoAlignCLIPModel", marks=pytest.mark.slow
        ),
        "from transformers import AutoModel, pipeline; import geoalign_hf",
    ],
)
def test_importing_any_part_of_the_package_registers_our_classes(first):
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


def test_importing_the_package_imports_little_more_than_the_classes_it_builds_on():
    code = """
import sys
from transformers import AutoModel, CLIPModel, pipeline
theirs = set(sys.modules)
import geoalign_hf
print(*(name for name in set(sys.modules) - theirs if name.split(".")[0] != "geoalign_hf"))
"""
    added = run(code).split()  # five when this was written; each module takes a few milliseconds
    assert len(added) <= 10, added


def test_no_two_files_of_tests_have_the_same_name():
    """pytest imports them by their name alone."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
