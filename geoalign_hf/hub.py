"""A folder of weights or of rows to something that can be published: here, its card."""

from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from .model.pipeline_geoalign_clip import ZeroShotRegionClassificationPipeline

TEMPLATE = Path(__file__).parent / "model_card.md"
DATASET_TEMPLATE = Path(__file__).parent / "dataset_card.md"


def write_card(folder: str | Path, metrics: dict[str, dict], settings: dict | None = None) -> ModelCard:
    """Fill the model card and write it into a folder as its README.md.

    Args:
        folder: a saved model.
        metrics: results of `evaluation.py` by name, each with its protocol; all of them are shown.
        settings: how it was trained, as in `args.json`.

    Returns:
        The card.
    """
    folder = Path(folder)
    name = folder.resolve().parent.name if folder.name == "final" else folder.name
    results = []
    for title, scores in metrics.items():
        protocol = scores["protocol"]
        dataset = f"{scores['num_regions']} boxes of {protocol['num_images']} images"
        for metric in ("top1_micro", "top1_macro"):
            results.append(
                EvalResult(
                    task_type=ZeroShotRegionClassificationPipeline.task_name,
                    task_name=protocol["task"],
                    dataset_type="custom",
                    dataset_name=dataset,
                    dataset_config=title,
                    dataset_args={key: value for key, value in protocol.items() if key != "concepts"},
                    metric_type="accuracy",
                    metric_name=f"{metric}, {title}",
                    metric_value=scores[metric],
                )
            )
    data = ModelCardData(
        language="en",
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["remote-sensing", "clip", "region", "geoalign_clip", "custom_code"],
        model_name=name,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data, template_path=str(TEMPLATE), model_name=name, metrics=metrics, settings=settings or {}
    )
    card.save(folder / "README.md")
    return card


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
        **settings | {"title": data.pretty_name},
    )
    card.save(folder / "README.md")
    return card


def _name_size(num_rows: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if num_rows < bound), "n>1M")
