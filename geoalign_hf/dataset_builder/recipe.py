"""Recipes: YAML files that describe public data sets, from which one dataset is built."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Any

import yaml

from ..captioning.grammar import add_article, spell_concept
from ..captioning.vocabulary import load_vocabulary
from ..readers.files import list_images
from ..readers.registry import READERS
from ..readers.skipped import SkipReport
from ..storage import read_text

logger = getLogger(__name__)
RECIPES = Path(__file__).parent / "recipes"
PURPOSES = ("research", "commercial", "redistribution")
REGION_LISTS = ("boxes", "quads", "phrases", "concepts", "difficult")


@dataclass(frozen=True)
class Source:
    """One data set of a recipe. Paths are relative to its folder; the first that exists is used.

    Args:
        name: Name of the data set.
        folders: Names that its folder may have below the root.
        format: Annotation format, a key of `READERS`.
        parts: Pairs of `annotations` and `images`, with optional `lists` (text files of the names to read)
            and `options` of the reader.
        home: Address of its home page.
        license: Terms of images and annotations.
        license_link: Address of the terms.
        purposes: Purposes that the terms allow, some of `PURPOSES`.
        published: Numbers of `images` and `regions` in these parts according to the authors.
        options: Options of the reader for all parts.
        names: Concept of the vocabulary for each name of the source that is not in the vocabulary. None
            removes the regions of that name.
        tile: Side and overlap of the tiles that large images are cut into, or None.
        test_images: Folders of the official test split. Its images must not be trained on.
        test_lists: Pairs of `names` and `images`, for official test splits that are in one folder with other
            images. `names` is a text file of names, or a folder of annotations with these names.
        supersedes: Sources that this one contains. They are not built if this one is present.
        evaluation: Whether it is an evaluation set, which is built only if it is named.
        unverified: Statements of the recipe that were not checked against the authors' files.
    """

    name: str
    folders: list[str]
    format: str
    parts: list[dict[str, Any]]
    home: str
    license: str
    license_link: str | None = None
    purposes: list[str] = field(default_factory=list)
    published: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str | None] = field(default_factory=dict)
    tile: tuple[int, int] | None = None
    test_images: list[str] = field(default_factory=list)
    test_lists: list[dict[str, str]] = field(default_factory=list)
    supersedes: list[str] = field(default_factory=list)
    evaluation: bool = False
    unverified: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EvaluationFiles:
    """An evaluation set whose images and captions must not be trained on.

    Args:
        name: Name of the set.
        folders: Names that its folder may have below the root.
        images: Folders of its images.
        captions: Caption files.
    """

    name: str
    folders: list[str]
    images: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Selection:
    """The sources of a recipe that are built, with their folders, and those that are not, with the reason."""

    present: list[tuple[Source, Path]]
    missing: list[dict[str, str]]
    eval_images: list[str]
    eval_captions: list[str]
    eval_lists: dict[str, list[Path]]


def load_recipe(name: str) -> tuple[list[Source], list[EvaluationFiles]]:
    """Read a recipe.

    Args:
        name: A YAML file, or the name of a recipe of this package, such as "rsfg.yaml".

    Returns:
        The sources and the evaluation sets.

    Raises:
        ValueError: If there is no such recipe, or it is not valid.
    """
    path = Path(name) if Path(name).is_file() else RECIPES / f"{Path(name).stem}.yaml"
    if not path.is_file():
        known = sorted(one.name for one in RECIPES.glob("*.yaml"))
        raise ValueError(f"{name} is not a file, and no recipe of this package: {known}. Give one of them.")
    try:
        content = yaml.safe_load(read_text(path))
        sources = [Source(**_fix_tile(entry)) for entry in content["sources"]]
        evaluations = [EvaluationFiles(**entry) for entry in content.get("evaluation_sets", [])]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        fields = [one.name for one in dataclasses.fields(Source)]
        raise ValueError(f"{path} is not a recipe ({error}). A source has the fields {fields}.") from error
    for source in sources:
        _check_source(path, source)
    if repeated := {one.name for one in sources} & {one.name for one in evaluations}:
        raise ValueError(f"{path}: {sorted(repeated)} are sources and evaluation sets. Remove one of each.")
    return sources, evaluations


def _fix_tile(entry: dict) -> dict:
    return entry | {"tile": tuple(entry["tile"])} if entry.get("tile") else entry


def _check_source(path: Path, source: Source) -> None:
    if source.format not in READERS:
        message = f"{path}: {source.name} has the format {source.format!r}; known are {sorted(READERS)}."
        raise ValueError(f"{message} Correct it.")
    if unknown := sorted(set(source.purposes) - set(PURPOSES)):
        raise ValueError(f"{path}: {source.name} has the purposes {unknown}; expected some of {PURPOSES}.")
    concepts = {concept for concept in source.names.values() if concept}
    if unknown := sorted(concepts - load_vocabulary().keys()):
        message = f"{path}: {source.name} names {unknown}, which are not in vocabulary.yaml."
        raise ValueError(f"{message} Add them there, or use a concept of it.")


def select_sources(
    recipe: str, root: str, names: list[str] | None = None, license_filter: str | None = None
) -> Selection:
    """Find the sources of a recipe below a folder.

    Args:
        recipe: Content of a recipe, see `load_recipe`.
        root: Folder that holds one subfolder per source.
        names: Sources to build. By default all, except evaluation sets.
        license_filter: Purpose that the terms of a source must allow, one of `PURPOSES`.

    Returns:
        What is built, and what is missing. Official test splits and evaluation sets that are present are
        listed for the leakage check.

    Raises:
        ValueError: If a name or the purpose is unknown, or no source is present.
    """
    if license_filter and license_filter not in PURPOSES:
        raise ValueError(f"--license_filter is {license_filter!r}. Choose one of {PURPOSES}.")
    if not Path(root).is_dir():
        raise ValueError(
            f"--root is {root!r}, which is not a folder. Give the folder that holds the data sets."
        )
    sources, evaluations = load_recipe(recipe)
    if unknown := sorted(set(names or []) - {source.name for source in sources}):
        known = [source.name for source in sources]
        raise ValueError(f"--sources has {unknown}; the recipe has {known}. Name some of these.")
    present, missing = [], []
    for source in sources:
        if source.name in names if names else not source.evaluation:
            folder = _find(Path(root), source.folders)
            reason = "not found" if folder is None else _find_reason(source, license_filter)
            if reason or folder is None:
                place = " or ".join(str(Path(root) / one) for one in source.folders)
                entry = {"name": source.name, "reason": reason, "home": source.home, "folder": place}
                missing.append(entry)
            else:
                present.append((source, folder))
    contained = {name for source, _ in present for name in source.supersedes}
    present = [(source, folder) for source, folder in present if source.name not in contained]
    missing = [entry for entry in missing if entry["name"] not in contained or entry["name"] in (names or [])]
    if not present:
        places = {entry["name"]: f"{describe_missing(entry)}, {entry['home']}" for entry in missing}
        raise ValueError(f"{root} holds no source that can be built: {places}. Download one into {root}.")
    eval_images, eval_captions, eval_lists = [], [], {}
    for one, folder in ((one, _find(Path(root), one.folders)) for one in (*sources, *evaluations)):
        images = one.test_images if isinstance(one, Source) else one.images
        captions = [] if isinstance(one, Source) else one.captions
        if folder is not None:
            eval_images += [str(folder / path) for path in images if (folder / path).is_dir()]
            eval_captions += [str(folder / path) for path in captions if (folder / path).is_file()]
        if folder is not None and isinstance(one, Source):
            for part in one.test_lists:
                eval_lists |= _list_test_images(folder / part["names"], folder / part["images"])
    return Selection(present, missing, eval_images, eval_captions, eval_lists)


def describe_missing(entry: dict[str, str]) -> str:
    """Say why a source is not built, with the folder that was expected if that was not found."""
    return entry["reason"] + (f" at {entry['folder']}" if entry["reason"] == "not found" else "")


def _list_test_images(names: Path, images: Path) -> dict[str, list[Path]]:
    """List the images of a test split by its list of names; nothing if the list or the folder is missing."""
    if not names.exists() or not images.is_dir():
        return {}
    lines = (path.name for path in names.iterdir()) if names.is_dir() else read_text(names).splitlines()
    wanted = {Path(line.strip()).stem for line in lines if line.strip()}
    return {str(names): [path for path in list_images(images) if path.stem in wanted]}


def _find_reason(source: Source, purpose: str | None) -> str:
    allowed = purpose is None or purpose in source.purposes
    return "" if allowed else f"its terms ({source.license}) do not allow {purpose}"


def _find(folder: Path, names: list[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def read_sources(
    present: list[tuple[Source, Path]], report: SkipReport, counts: dict[str, dict[str, int]]
) -> Iterator[dict]:
    """Read the rows of several sources, with the concepts of the vocabulary.

    Args:
        present: The sources and their folders.
        report: Collector of what is skipped. It decides whether an error stops the reading.
        counts: Dictionary that receives the numbers of `images` and `regions` of each source.

    Yields:
        Rows of readers, with `dataset`, `license` and `tile`. `source` begins with the name of the data set.

    Raises:
        ValueError: If a source has a name that is neither in the vocabulary nor in the recipe.
    """
    for source, folder in present:
        found = counts.setdefault(source.name, {"images": 0, "regions": 0})
        for part in source.parts:
            for row in _read_part(source, folder, part, report):
                found["images"] += 1
                found["regions"] += len(row["boxes"])
                yield _translate(row, source) | {
                    "source": f"{source.name}/{row['source']}",
                    "dataset": source.name,
                    "license": source.license,
                    "tile": source.tile,
                }
        if wrong := _compare_counts(source, found):
            logger.warning(f"{source.name} at {folder}: {wrong}.")


def _compare_counts(source: Source, found: dict[str, int]) -> str:
    """Return how numbers differ from those that the authors state; "" if they do not."""
    wrong = {key: number for key, number in source.published.items() if found[key] != number}
    return ", ".join(f"{found[key]} {key}, but the authors state {number}" for key, number in wrong.items())


def describe_sources(
    selection: Selection, counts: dict[str, dict[str, int]], rows: Iterable[dict]
) -> list[dict[str, Any]]:
    """Describe the sources of a finished dataset for its statistics and its card.

    Args:
        selection: Sources that were built.
        counts: Numbers of images and regions of each source, from `read_sources`.
        rows: Rows of the dataset.

    Returns:
        For each source its name, home page and terms, and the numbers in the source and in the dataset. If
        they differ from the published ones, the difference is stated.
    """
    built: dict[str, Counter] = {source.name: Counter() for source, _ in selection.present}
    for row in rows:
        negatives = sum(map(len, row["hard_negatives"]))
        built[row["dataset"]].update(num_rows=1, num_regions=len(row["boxes"]), num_hard_negatives=negatives)
    return [
        {"name": source.name, "home": source.home, "license": source.license}
        | {"license_link": source.license_link, "purposes": source.purposes, "unverified": source.unverified}
        | counts[source.name]
        | {name: built[source.name][name] for name in ("num_rows", "num_regions", "num_hard_negatives")}
        | {"differences": _compare_counts(source, counts[source.name]) or "as published, or not stated"}
        for source, _ in selection.present
    ]


def _read_part(source: Source, folder: Path, part: dict[str, Any], report: SkipReport) -> Iterator[dict]:
    places = {}
    for key in ("annotations", "images"):
        names = [part[key]] if isinstance(part[key], str) else part[key]
        places[key] = _find(folder, names)
        if places[key] is None:
            report.refuse("missing part", f"{folder} lacks {names} of {source.name}. Unpack it there.")
            return iter(())
    options = source.options | part.get("options", {})
    if part.get("lists"):
        options["only"] = set()
        for name in part["lists"]:
            options["only"] |= {Path(line.strip()).stem for line in read_text(folder / name).splitlines()}
    return READERS[source.format](places["annotations"], places["images"], report=report, **options)


def _translate(row: dict, source: Source) -> dict:
    """Replace the names of a source by concepts of the vocabulary, and remove regions without one."""
    vocabulary = load_vocabulary()
    names = {spell_concept(name): concept for name, concept in source.names.items()}
    concepts = [names.get(name, name) for name in row["concepts"]]
    unboxed = [names.get(name, name) for name in row["unboxed"]]
    if unknown := sorted({name for name in (*concepts, *unboxed) if name and name not in vocabulary}):
        raise ValueError(
            f"{source.name}: {row['source']} has the names {unknown}, which are neither in vocabulary.yaml "
            "nor in the recipe. Add them to the `names` of the source."
        )
    kept = [r for r, concept in enumerate(concepts) if concept]
    row = row | {"concepts": concepts, "unboxed": sorted({name for name in unboxed if name})}
    row |= {name: [row[name][r] for r in kept] for name in REGION_LISTS if row[name]}
    return row | {"phrases": [add_article(concept) for concept in row["concepts"]]}
