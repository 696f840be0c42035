"""Writes model cards and dataset cards."""

import json
import math
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open

from ..model.pipeline_geoalign_clip import ZeroShotRegionClassificationPipeline
from ..model.requirements_geoalign_clip import REQUIRED_TRANSFORMERS
from ..storage import PARTIAL, read_json, write_json
from .dataset_cards import UNNAMED

TEMPLATE = Path(__file__).parent / "model_card.md"
# For each task of the evaluation, the Hub's name of the task and the score that orders results.
TASKS = {
    "region classification from ground-truth boxes": (
        ZeroShotRegionClassificationPipeline.task_name,
        "top1_macro",
    ),
    "zero-shot scene classification": ("zero-shot-image-classification", "top1_micro"),
    "retrieval of images and captions": ("image-text-retrieval", "mean_recall"),
    "retrieval of regions and phrases": ("image-text-retrieval", "mean_recall"),
    "multiple choice over statements": ("visual-question-answering", "accuracy"),
    "a phrase against its hard negatives": ("feature-extraction", "accuracy"),
}
START, FINISHED = "start", ("final", "best")  # last words of the titles of results that the trainer writes
# Placeholder in a card that `push` replaces by the name of the repository of an adapter's base model.
LOCAL_BASE = "a local folder"  # a base model that nobody else can load
UNNAMED_BASE = "you/your-base-model"


def write_card(folder: str | Path, metrics: dict[str, dict], settings: dict | None = None) -> ModelCard:
    """Write the model card of a folder as README.md, with the files that it was made from.

    Args:
        folder: A saved model or adapter. Its pictures (*.png) are shown.
        metrics: Evaluation results by name, each with its protocol, as `write_metrics` writes them. The
            protocol may name the evaluation set as `dataset`. They are kept as `metrics.json`.
        settings: Training settings, kept as `args.json`. These entries have places of their own on the card:
            `license` of the weights, as the Hub spells it; `base_model`, from which training started; `data`
            and `evaluation_data`, the training and the evaluation set, as `describe_dataset` returns them.

    Returns:
        The card.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    card = make_card(folder, metrics, settings)
    settings = dict(settings or {})
    if settings.get("base_model") and Path(settings["base_model"]).exists():
        settings["base_model"] = LOCAL_BASE
    # These files are published with the card, so they must not name folders of this machine.
    write_json(folder / "metrics.json", hide_paths(metrics))
    write_json(folder / "args.json", hide_paths(settings))
    card.save(folder / "README.md")
    return card


def make_card(folder: Path, metrics: dict[str, dict], settings: dict | None = None) -> ModelCard:
    """Make the model card of a folder; see `write_card`."""
    settings = dict(settings or {})
    license, base_model = settings.pop("license", None), settings.pop("base_model", None)
    data = _check_data(settings.pop("data", None))
    evaluation_data = _check_data(settings.pop("evaluation_data", None))
    name, adapter = _name_folder(folder), _read_json(folder / "adapter_config.json")
    if adapter:
        base_model = adapter["base_model_name_or_path"]
    is_published = base_model and base_model != LOCAL_BASE and not Path(base_model).exists()
    if base_model and not is_published:
        base_model = UNNAMED_BASE if adapter else LOCAL_BASE
    measured = name_results(sort_results(metrics))
    card_data = ModelCardData(
        language="en",
        license=license,
        library_name="peft" if adapter else "transformers",
        base_model=base_model if is_published else None,
        datasets=[data["name"]] if data and data["repo_id"] else None,
        pipeline_tag="zero-shot-image-classification",
        tags=["remote-sensing", "clip", "region", "geoalign_clip", "lora" if adapter else "custom_code"],
        model_name=name,
        eval_results=_list_eval_results(measured, evaluation_data) or None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        model_name=name,
        repo_id=UNNAMED,
        base_model=base_model,
        is_adapter=bool(adapter),
        architecture=describe_architecture(folder),
        transformers_version=REQUIRED_TRANSFORMERS,
        data=data,
        license_name=license,
        pictures=sorted(path.name for path in folder.glob("*.png")),
        results={
            title: _describe_result(scores, evaluation_data, metrics.get(f"{title} {START}", {}))
            for title, scores in measured.items()
        },
        settings=hide_paths(settings),
        image_rule=_read_json(folder / "processor_config.json").get("image_rule"),
    )


def hide_paths(value: Any) -> Any:
    """Replace local paths in settings, also in nested ones, by the name of the file or folder.

    Example:
        >>> hide_paths({"training": {"output_dir": "/home/me/runs/harbors", "seed": 0}})
        {'training': {'output_dir': 'harbors', 'seed': 0}}
    """
    if isinstance(value, dict):
        return {name: hide_paths(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [hide_paths(entry) for entry in value]
    is_path = isinstance(value, str) and "/" in value and (Path(value).is_absolute() or Path(value).exists())
    return Path(value).name if is_path else value


def sort_results(metrics: dict[str, dict]) -> dict[str, dict]:
    """Sort the results of each task by their most important score, the best first.

    Example:
        >>> task = {"protocol": {"task": "multiple choice over statements"}}
        >>> list(sort_results({"a": {"accuracy": 0.2} | task, "b": {"accuracy": 0.5} | task}))
        ['b', 'a']
    """
    tasks = list(dict.fromkeys(scores["protocol"]["task"] for scores in metrics.values()))

    def rank(item: tuple[str, dict]) -> tuple[int, float]:
        task = item[1]["protocol"]["task"]
        _, primary = TASKS.get(task, (None, None))
        return tasks.index(task), -item[1].get(primary, -math.inf)

    return dict(sorted(metrics.items(), key=rank))


def name_results(metrics: dict[str, dict]) -> dict[str, dict]:
    """Name the results of the weights that a card describes, without the results before training.

    Example:
        >>> name_results({"regions start": {"step": 0}, "regions final": {"step": 9}, "toy": {}})
        {'regions': {'step': 9}, 'toy': {}}
    """
    results: dict[str, dict] = {}
    for title, scores in metrics.items():
        name, _, moment = title.rpartition(" ")
        if moment != START:
            results[name if moment in FINISHED and name and name not in results else title] = scores
    return results


def _list_eval_results(metrics: dict[str, dict], data: dict | None) -> list[EvalResult]:
    """List all scores for the card's model index."""
    return [
        EvalResult(
            task_type=TASKS.get(scores["protocol"]["task"], ("feature-extraction", None))[0],
            task_name=scores["protocol"]["task"],
            dataset_type=data["repo_id"] if data and data["repo_id"] else "custom",
            dataset_name=_name_evaluation_set(scores, data) or title,
            dataset_config=title,  # the Hub tells results of one task type apart by this
            dataset_args=hide_paths(list_protocol(scores)),
            metric_type=name_metric(metric),
            metric_name=f"{metric}, {title}",
            metric_value=value,
        )
        for title, scores in metrics.items()
        for metric, value in list_numbers(scores).items()
        if not metric.startswith(
            ("chance", "blind")
        )  # these are scores of no model, or of one without images
    ]


def _name_evaluation_set(scores: dict, data: dict | None) -> str | None:
    return scores["protocol"].get("dataset") or (data["name"] if data else None)


def _describe_result(scores: dict, data: dict | None, before: dict) -> dict:
    protocol = hide_paths(list_protocol(scores))
    return {
        "dataset": _name_evaluation_set(scores, data),
        "task": protocol.pop("task"),
        "numbers": list_numbers(scores),
        "before": list_numbers(before),
        "tables": list_tables(scores),
        "protocol": {name: json.dumps(value) for name, value in protocol.items()},
    }


def describe_architecture(folder: Path) -> dict | None:
    """Describe the saved model or adapter of a folder: number of parameters and what it takes as input.

    Returns:
        `num_parameters` and, for a model, `image_size`, `patch_size`, `num_tokens`, `vocab_size`,
        `region_view` and `region_context`. None if the folder holds no weights.
    """
    files = [
        path for path in folder.glob("*.safetensors") if path.stem.startswith(("model", "adapter_model"))
    ]
    if not files:
        return None
    found = {"num_parameters": sum(map(_count_parameters, files))}
    config = _read_json(folder / "config.json")
    if config.get("vision_config") and config.get("text_config"):
        vision, text = config["vision_config"], config["text_config"]
        found |= {"image_size": vision.get("image_size", 224), "patch_size": vision.get("patch_size", 32)}
        found["num_tokens"] = text.get("max_position_embeddings", 77)
        found["vocab_size"] = text.get("vocab_size", 49408)
        found["region_view"] = config.get("region_view", "image")
        found["region_context"] = config.get("region_context")
    return found


def _count_parameters(path: Path) -> int:
    with safe_open(path, "np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _check_data(data: object) -> dict | None:
    """Return a description of a dataset, or None if it is not one."""
    return data if isinstance(data, dict) and {"name", "repo_id", "license"} <= data.keys() else None


def describe_dataset(source: str) -> dict:
    """Describe a training or evaluation set for a card.

    Args:
        source: A folder or Hub repository of rows, whose card is read, or a COCO file.

    Returns:
        `name`, `repo_id`, `license`, for local data the list of `concepts`, and `image_rule`, by which images
        of more than 8 bits were read. What is unknown is None.
    """
    path = Path(source)
    found: dict[str, Any] = {"image_rule": None}
    if path.suffix == ".json":
        content = _read_json(path)
        licenses = [entry.get("name") or entry.get("url") for entry in content.get("licenses") or []]
        concepts = sorted({str(entry["name"]) for entry in content.get("categories") or []})
        license = ", ".join(filter(None, licenses)) or None
        return found | {
            "name": path.name, "repo_id": None, "license": license, "concepts": concepts or None
        }  # fmt: skip
    found |= {"name": name_dataset(source), "repo_id": None if path.exists() else source}
    found["concepts"] = sorted(_read_json(path / "statistics.json").get("concepts", {})) or None
    if path.exists() and not (path / "README.md").exists():
        return found | {"license": None}
    try:
        data: Any = DatasetCard.load(path / "README.md" if path.exists() else source).data
    except EntryNotFoundError:
        return found | {"license": None}
    found["image_rule"] = getattr(data, "image_rule", None)
    return found | {"license": getattr(data, "license_name", None) or data.license}


def name_dataset(source: str | Path) -> str:
    """Return the title on the card of a local dataset, or else the name of the file, folder or repository."""
    path = Path(source)
    if not path.exists():
        return str(source)
    card = path / "README.md"
    data: Any = DatasetCard.load(card).data if card.exists() else None
    return getattr(data, "pretty_name", None) or path.resolve().name


def _name_folder(folder: Path) -> str:
    """Return the name of a folder or, for a checkpoint, the name of its run; also while it is written."""
    folder = folder.resolve()
    name = folder.name
    if name.endswith(PARTIAL):
        name = name.removeprefix(".").removesuffix(PARTIAL)
    return folder.parent.name if name.startswith((*FINISHED, "checkpoint-")) else name


def _read_json(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def has_protocol(scores: object) -> bool:
    """Return whether scores can be shown on a card, that is, whether their protocol names their task."""
    protocol = scores.get("protocol") if isinstance(scores, dict) else None
    return isinstance(protocol, dict) and "task" in protocol


def list_numbers(scores: dict) -> dict[str, float]:
    """Return the scores of a result that are single numbers.

    Example:
        >>> list_numbers({"top1_micro": 0.5, "num_regions": 8, "per_concept": {"ship": 0.5}})
        {'top1_micro': 0.5}
    """
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def list_tables(scores: dict) -> dict[str, dict[str, tuple[float, int]]]:
    """Return the scores of a result that are listed by name, each with its count.

    Example:
        >>> list_tables({"per_concept": {"ship": 0.5}, "num_per_concept": {"ship": 8}})
        {'concept': {'ship': (0.5, 8)}}
    """
    return {
        name.removeprefix("per_").removeprefix("by_"): {
            key: (score, scores[f"num_{name}"][key]) for key, score in table.items()
        }
        for name, table in scores.items()
        if name.startswith(("per_", "by_")) and f"num_{name}" in scores
    }


def list_protocol(scores: dict) -> dict:
    """Return the protocol of a result with its counts, without empty entries.

    Example:
        >>> list_protocol({"num_regions": 8, "protocol": {"task": "x", "context": None, "concepts": []}})
        {'task': 'x', 'num_regions': 8}
    """
    counts = {name: value for name, value in scores.items() if isinstance(value, int)}
    protocol = {name: value for name, value in scores["protocol"].items() if name != "concepts"} | counts
    return {name: value for name, value in protocol.items() if value not in (None, "", [], {})}


def name_metric(score: str) -> str:
    """Return the Hub's name for a kind of score.

    Example:
        >>> [name_metric(score) for score in ("top1_macro", "image_to_text_recall_at_5", "rsu")]
        ['accuracy', 'recall', 'rsu']
    """
    if "recall" in score:
        return "recall"
    return "accuracy" if score.startswith("top") or "accuracy" in score else score
