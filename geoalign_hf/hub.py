"""A trained folder and its metrics to something that can be published: here, its card."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .model.pipeline_geoalign_clip import ZeroShotRegionClassificationPipeline

TEMPLATE = Path(__file__).parent / "model_card.md"


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
