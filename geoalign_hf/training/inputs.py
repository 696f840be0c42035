"""What a trainer makes of its arguments before the first step: data, and the metric of the best model."""

from collections.abc import Callable, Sequence

from ..data.collator import RowCollator
from ..data.schema import check_columns, list_concepts
from ..data.training_dataset import TrainingDataset
from ..losses.objective import LossWeights
from .arguments import GeoAlignTrainingArguments


def prepare_data(
    rows,
    processor,
    args: GeoAlignTrainingArguments,
    loss_weights: LossWeights,
    augmentation: Callable | None,
    templates: Sequence[str],
) -> tuple[TrainingDataset, RowCollator]:
    """Make the data set that training sees, and the collator of its batches."""
    check_columns(rows)
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


def choose_metric(args: GeoAlignTrainingArguments, evaluators: Sequence) -> None:
    """Resolve when to evaluate, and by which number the best model is chosen.

    Raises:
        TypeError: if an evaluator lacks an attribute.
        ValueError: if two evaluators have the same name, or an argument needs evaluators.
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
    if args.metric_for_best_model is None:
        args.metric_for_best_model = f"eval_{names[0]}_{evaluators[0].primary_metric}"
        if args.greater_is_better is None:
            args.greater_is_better = evaluators[0].greater_is_better
