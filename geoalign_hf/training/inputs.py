"""Preparation of a run: data set and collator, terms without data, and the metric of the best model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from datasets import Dataset, DatasetDict

from ..data.augmentation import Augmentation
from ..data.collator import RowCollator
from ..data.schema import check_columns, list_concepts
from ..data.training_dataset import TrainingDataset
from ..losses.objective import LossWeights
from .arguments import GeoAlignTrainingArguments

# The column without which a term has no data.
COLUMNS = {
    "scene": "captions",
    "description": "description",
    "region": "phrases",
    "concept": "concepts",
    "crop_concept": "concepts",
    "hard_negative": "hard_negatives",
    "crop_consistency": "boxes",
    "image_consistency": "boxes",
    "text_consistency": "description",
}


def prepare_data(
    rows,
    processor,
    args: GeoAlignTrainingArguments,
    loss_weights: LossWeights,
    augmentation: Augmentation | None,
    templates: Sequence[str],
) -> tuple[TrainingDataset, RowCollator]:
    """Make the data set that training sees, and the collator of its batches."""
    largest = max(map(len, rows["boxes"]))
    max_regions = max(1, min(args.max_regions or largest, largest))
    dataset = TrainingDataset(
        rows,
        augmentation,
        max_regions,
        args.seed if args.data_seed is None else args.data_seed,
        args.max_negatives,
        args.max_crops if loss_weights.reads_crops else None,
        processor.image_processor.size["height"],
    )
    vocabulary = list_concepts(rows) if loss_weights.concept + loss_weights.crop_concept else []
    if len(vocabulary) > args.max_vocabulary:
        vocabulary = None
    return dataset, RowCollator(processor, max_regions, templates, loss_weights.text_kinds, vocabulary)


def check_rows(rows) -> None:
    """Refuse rows that cannot be trained on.

    Raises:
        ValueError: if they are not a `datasets.Dataset`, for example because they are streamed, have a format
            such as `torch`, or lack columns.
    """
    if isinstance(rows, DatasetDict):
        raise ValueError(
            f"train_dataset has the splits {list(rows)}. Give one of them, such as rows['train']."
        )
    if not isinstance(rows, Dataset):
        raise ValueError(
            f"train_dataset is a {type(rows).__name__}, but training draws rows in a new order in every "
            "epoch, and so needs a datasets.Dataset. Load the rows without streaming=True, or build them "
            "with geoalign_hf.build_rows. This also holds with max_steps."
        )
    if rows.format["type"] is not None:
        raise ValueError(
            f"train_dataset has the format {rows.format['type']!r}, but training reads plain Python values. "
            "Give train_dataset.with_format(None)."
        )
    check_columns(rows)


def drop_terms_without_data(rows, loss_weights: LossWeights) -> tuple[LossWeights, dict[str, str]]:
    """Set the weight of every term to 0 for which the rows have no data.

    Returns:
        The weights, and for each dropped term the column that is empty.

    Raises:
        ValueError: if no term is left.
    """
    needed = {term: column for term, column in COLUMNS.items() if getattr(loss_weights, term)}
    names = set(rows.column_names)
    is_empty = {
        column: column not in names or not any(map(_has_content, rows[column])) for column in needed.values()
    }
    dropped = {term: column for term, column in needed.items() if is_empty[column]}
    if needed and not needed.keys() - dropped.keys():
        raise ValueError(
            f"the rows have nothing in the columns {sorted(set(dropped.values()))}, so no term is left. "
            "Give rows with such data, or other loss weights."
        )
    return replace(loss_weights, **dict.fromkeys(dropped, 0.0)), dropped


def _has_content(cell) -> bool:
    """Return whether a cell is a text or a number, or a list with one at any depth."""
    return any(map(_has_content, cell)) if isinstance(cell, list) else cell not in (None, "")


def count_cut_texts(rows, tokenizer, loss_weights: LossWeights, templates: Sequence[str]) -> dict[str, int]:
    """Count the texts of the rows that are longer than the text tower and lose their ends in training.

    Returns:
        The number of different texts that are cut, by column. Columns without such texts are not listed. A
        concept is counted once if any of its templates is cut.
    """
    columns = {"caption": "captions", "description": "description", "phrase": "phrases"}
    columns |= {"concept": "concepts", "negative": "hard_negatives"}
    longest, counts = tokenizer.model_max_length, {}
    for kind, column in columns.items():
        if kind not in loss_weights.text_kinds or column not in rows.column_names:
            continue
        texts = {text for cell in rows[column] for text in _list_texts(cell)}
        if kind == "concept":
            texts = {max((template.format(text) for template in templates), key=len) for text in texts}
        # A token has at least one character, so that only long texts need the tokenizer.
        long_texts = [text for text in texts if len(text) > longest - 2]
        lengths = map(len, tokenizer(long_texts, verbose=False)["input_ids"]) if long_texts else ()
        if number := sum(length > longest for length in lengths):
            counts[column] = number
    return counts


def _list_texts(cell) -> Iterator[str]:
    """List the texts of a cell, which is a text, nothing, or a list of cells."""
    if isinstance(cell, list):
        for part in cell:
            yield from _list_texts(part)
    elif cell:
        yield cell


def choose_metric(args: GeoAlignTrainingArguments, evaluators: Sequence) -> None:
    """Resolve when to evaluate, and by which number the best model is chosen.

    Raises:
        TypeError: if an evaluator lacks an attribute.
        ValueError: if two evaluators have the same name, an argument needs evaluators, or
            `metric_for_best_model` is not one of their scores as far as this can be known now.
    """
    for evaluator in evaluators:
        for attribute in ("name", "primary_metric", "greater_is_better"):
            if not hasattr(evaluator, attribute):
                raise TypeError(
                    f"the evaluator {evaluator!r} has no attribute {attribute}. Give an Evaluator, or set it."
                )
    names = [evaluator.name for evaluator in evaluators]
    if len(set(names)) < len(names):
        raise ValueError(f"the evaluators are named {names}; each must have a name of its own. Set `name`.")
    if not evaluators:
        if args.eval_strategy == "steps" or args.metric_for_best_model or args.load_best_model_at_end:
            raise ValueError(
                "eval_strategy 'steps', metric_for_best_model and load_best_model_at_end need evaluators, "
                "but there are none. Pass evaluators=[...]."
            )
        args.set_without_evaluation()
        return
    primary = {f"{each.name}_{each.primary_metric}": each.greater_is_better for each in evaluators}
    if args.metric_for_best_model is None:
        args.metric_for_best_model = f"eval_{next(iter(primary))}"
    else:
        _check_metric(args, names, list(primary))
    metric = args.metric_for_best_model.removeprefix("eval_")
    if args.greater_is_better is None:
        args.greater_is_better = primary.get(metric, not metric.endswith("loss"))


def _check_metric(args: GeoAlignTrainingArguments, names: list[str], primary: list[str]) -> None:
    """Refuse a metric that no evaluation gives, or that would be found missing only after an epoch."""
    chosen = f"metric_for_best_model is {args.metric_for_best_model!r}"
    metric = str(args.metric_for_best_model).removeprefix("eval_")
    if args.eval_strategy == "no":
        raise ValueError(f"{chosen}, but eval_strategy is 'no'. Set it to 'epoch' or 'steps'.")
    if not any(metric.startswith(f"{name}_") for name in names):
        listed = [f"eval_{name}" for name in primary]
        raise ValueError(
            f"{chosen}, but the evaluators are named {names}. Give one of their scores, such as {listed}."
        )
    if metric not in primary and not args.eval_on_start:
        raise ValueError(
            f"{chosen}, and only an evaluation shows whether there is such a score. Leave eval_on_start at "
            "True, so that a wrong name does not cost an epoch."
        )
