"""What a folder of weights, an adapter or a folder of rows says of itself: its card."""

import json
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError

from ..model.pipeline_geoalign_clip import ZeroShotRegionClassificationPipeline
from ..storage import read_json, write_json

TEMPLATE = Path(__file__).parent / "model_card.md"
DATASET_TEMPLATE = Path(__file__).parent / "dataset_card.md"
# What the Hub calls the tasks of the evaluation.
TASK_TYPES = {
    "region classification from ground-truth boxes": ZeroShotRegionClassificationPipeline.task_name,
    "zero-shot scene classification": "zero-shot-image-classification",
    "retrieval of images and captions": "image-text-retrieval",
    "retrieval of regions and phrases": "image-text-retrieval",
    "multiple choice over statements": "visual-question-answering",
}
# In a card, until `hub.push` puts names in their places: the repository's, and that of an adapter's base.
UNNAMED, UNNAMED_BASE = "you/your-repository", "you/your-base-model"


def write_card(folder: str | Path, metrics: dict[str, dict], settings: dict | None = None) -> ModelCard:
    """Fill the model card and write it into a folder as its README.md, with what it was made of beside it.

    Args:
        folder: a saved model or adapter. Its pictures (*.png) are shown.
        metrics: results of the evaluation by name, of any task, each with its protocol, as `write_metrics`
            writes them; all of them are shown, and kept as `metrics.json`.
        settings: how it was trained, kept as `args.json`. Three of its entries have places of their own:
            `license` of the weights, as the Hub spells it; `base_model`, what training started from; `data`,
            what it was trained on, as `describe_dataset` gives it.

    Returns:
        The card.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    card = make_card(folder, metrics, settings)
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "args.json", settings or {})
    card.save(folder / "README.md")
    return card


def make_card(folder: Path, metrics: dict[str, dict], settings: dict | None = None) -> ModelCard:
    """Fill the model card; see `write_card`."""
    settings = dict(settings or {})
    license, base_model = settings.pop("license", None), settings.pop("base_model", None)
    data, name = settings.pop("data", None), _name_folder(folder)
    data = data if isinstance(data, dict) and {"name", "repo_id", "license"} <= data.keys() else None
    adapter = _read_json(folder / "adapter_config.json")
    if adapter:
        base_model = adapter["base_model_name_or_path"]
    is_published = base_model and not Path(base_model).exists()
    if base_model and not is_published:
        base_model = UNNAMED_BASE if adapter else "a local folder"
    results = [
        EvalResult(
            task_type=TASK_TYPES.get(scores["protocol"]["task"], "feature-extraction"),
            task_name=scores["protocol"]["task"],
            dataset_type="custom",
            dataset_name=title,
            dataset_config=title,  # results of one task type are told apart by this
            dataset_args=list_protocol(scores),
            metric_type=name_metric(metric),
            metric_name=f"{metric}, {title}",
            metric_value=value,
        )
        for title, scores in metrics.items()
        for metric, value in list_numbers(scores).items()
        if not metric.startswith(("chance", "blind"))  # which no model has scored, or none that has seen
    ]
    card_data = ModelCardData(
        language="en",
        license=license,
        library_name="peft" if adapter else "transformers",
        base_model=base_model if is_published else None,
        datasets=[data["name"]] if data and data["repo_id"] else None,
        pipeline_tag="zero-shot-image-classification",
        tags=["remote-sensing", "clip", "region", "geoalign_clip", "lora" if adapter else "custom_code"],
        model_name=name,
        eval_results=results or None,
    )
    shown = {
        title: {
            "numbers": list_numbers(scores),
            "tables": list_tables(scores),
            "task": scores["protocol"]["task"],
            "protocol": {
                name: json.dumps(value) for name, value in list_protocol(scores).items() if name != "task"
            },
        }
        for title, scores in metrics.items()
    }
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        model_name=name,
        repo_id=UNNAMED,
        base_model=base_model,
        is_adapter=bool(adapter),
        data=data,
        license_name=license,
        pictures=sorted(path.name for path in folder.glob("*.png")),
        results=shown,
        settings=settings,
    )


def describe_dataset(source: str) -> dict[str, str | None]:
    """Say what a model is trained on, and on what terms: `name`, `repo_id` and `license`.

    Args:
        source: a folder or Hub repository of rows, whose card is read, or a COCO file, which lists its own.
    """
    path = Path(source)
    if path.suffix == ".json":
        named = _read_json(path).get("licenses") or []
        license = ", ".join(filter(None, (entry.get("name") or entry.get("url") for entry in named)))
        return {"name": path.name, "repo_id": None, "license": license or None}
    told = {"name": path.name, "repo_id": None} if path.exists() else {"name": source, "repo_id": source}
    if path.exists() and not (path / "README.md").exists():
        return told | {"license": None}
    try:
        data = DatasetCard.load(path / "README.md" if path.exists() else source).data
    except EntryNotFoundError:
        return told | {"license": None}
    return told | {"license": getattr(data, "license_name", None) or data.license}


def _name_folder(folder: Path) -> str:
    """Give a folder's name, or that of the run which left it."""
    folder = folder.resolve()
    is_of_run = folder.name.startswith(("final", "best", "checkpoint-", "partial-"))
    return folder.parent.name if is_of_run else folder.name


def _read_json(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def write_dataset_card(
    folder: str | Path, statistics: dict, settings: dict, leakage: str | None = None
) -> DatasetCard:
    """Fill the dataset card and write it into a folder of rows as its README.md.

    The names of the shards tell `datasets` what they are. A card that told it, too (`configs`), would make
    all folders of one name share one cache, and `load_dataset` give the rows of another.

    Args:
        folder: with `data/<split>-*.parquet`.
        statistics: as `build` counts them.
        settings: of the build, with `split`, `license`, `license_name`, `license_link`, `model` and `leaks`.
        leakage: the table of overlaps with evaluation sets, if there are such sets.

    Returns:
        The card.
    """
    folder = Path(folder)
    data = DatasetCardData(
        language="en",
        license=settings["license"],
        license_name=settings["license_name"],
        license_link=settings["license_link"],
        pretty_name=settings["title"] or folder.resolve().name,
        task_categories=["zero-shot-image-classification", "object-detection", "image-to-text"],
        tags=["remote-sensing", "region", "hard-negatives", "geoalign_clip"],
        size_categories=_name_size(statistics["num_rows"]),
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(DATASET_TEMPLATE),
        statistics=statistics,
        leakage=leakage,
        repo_id=UNNAMED,
        **settings | {"title": data.pretty_name},
    )
    card.save(folder / "README.md")
    return card


def _name_size(num_rows: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if num_rows < bound), "n>1M")


def has_protocol(scores: object) -> bool:
    """Say whether these are scores that a card can show: their protocol names their task."""
    protocol = scores.get("protocol") if isinstance(scores, dict) else None
    return isinstance(protocol, dict) and "task" in protocol


def list_numbers(scores: dict) -> dict[str, float]:
    """Give the scores of a result that are single numbers.

    Example:
        >>> list_numbers({"top1_micro": 0.5, "num_regions": 8, "per_concept": {"ship": 0.5}})
        {'top1_micro': 0.5}
    """
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def list_tables(scores: dict) -> dict[str, dict[str, tuple[float, int]]]:
    """Give the scores of a result that are kept by name, each with its count.

    Example:
        >>> list_tables({"per_concept": {"ship": 0.5}, "num_per_concept": {"ship": 8}})
        {'concept': {'ship': (0.5, 8)}}
    """
    return {
        name.removeprefix("per_").removeprefix("by_"): {
            key: (share, scores[f"num_{name}"][key]) for key, share in shares.items()
        }
        for name, shares in scores.items()
        if name.startswith(("per_", "by_")) and f"num_{name}" in scores
    }


def list_protocol(scores: dict) -> dict:
    """Give what a result was made by and on: its protocol and its counts, without what is empty.

    Example:
        >>> list_protocol({"num_regions": 8, "protocol": {"task": "x", "context": None, "concepts": []}})
        {'task': 'x', 'num_regions': 8}
    """
    counts = {name: value for name, value in scores.items() if isinstance(value, int)}
    told = {name: value for name, value in scores["protocol"].items() if name != "concepts"} | counts
    return {name: value for name, value in told.items() if value not in (None, "", [], {})}


def name_metric(score: str) -> str:
    """Give the Hub's name for a kind of score.

    Example:
        >>> [name_metric(score) for score in ("top1_macro", "image_to_text_recall_at_5", "rsu")]
        ['accuracy', 'recall', 'rsu']
    """
    if "recall" in score:
        return "recall"
    return "accuracy" if score.startswith("top") or "accuracy" in score else score
