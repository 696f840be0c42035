"""Writes the cards of datasets."""

from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

TEMPLATE = Path(__file__).parent / "dataset_card.md"
UNNAMED = "you/your-repository"  # in a card, until `push` replaces it by the name of the repository


def write_dataset_card(
    folder: str | Path, statistics: dict, settings: dict, leakage: str | None = None
) -> DatasetCard:
    """Write the dataset card of a folder of rows as README.md.

    `datasets` finds the splits by the names of the shards. The card does not list them as `configs`. If it
    did, all folders of one name would share one cache, and `load_dataset` could return the rows of another.

    Args:
        folder: Folder with `data/<split>-*.parquet`.
        statistics: Statistics of the build.
        settings: Settings of the build, with `title`, `split`, `license`, `license_name`, `license_link`,
            `model`, `leaks` and `image_rule`, by which images of more than 8 bits were read.
        leakage: Table of overlaps with evaluation sets, if there are any.

    Returns:
        The card.
    """
    folder = Path(folder)
    data = DatasetCardData(
        language="en",
        license=settings["license"] or ("other" if statistics.get("sources") else None),
        license_name=settings["license_name"] or ("mixed" if statistics.get("sources") else None),
        license_link=settings["license_link"],
        pretty_name=settings["title"] or folder.resolve().name,
        task_categories=["zero-shot-image-classification", "object-detection", "image-to-text"],
        tags=["remote-sensing", "region", "hard-negatives", "geoalign_clip"],
        size_categories=_name_size(statistics["num_rows"]),
        image_rule=settings["image_rule"],  # training reads it, so that the model reads images alike
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
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
