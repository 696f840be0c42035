"""Arrays to numbers: pure functions. Shares are in [0, 1]."""

import numpy as np

# COCO's bounds on the area of a box, in pixels of the image as given.
SIZE_BOUNDS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}
# Cosines of equal vectors differ by rounding, so scores closer than this are ties, and ties count against us.
TIE = 1e-6
RECALL_AT = (1, 5, 10)


def rank_concepts(scores: np.ndarray, k: int = 5) -> np.ndarray:
    """Give the best concepts of each row of scores.

    Args:
        scores: (N, C).
        k: how many; with C or fewer concepts that would always be right, so then only the best one is given.

    Returns:
        (N, k) or (N, 1), indices, best first; of equal ones the first in the order of concepts.

    Example:
        >>> rank_concepts(np.array([[0.1, 0.9, 0.5]]), k=2).tolist()
        [[1, 2]]
    """
    k = k if scores.shape[1] > k else 1
    return np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :k]


def score_concepts(
    predictions: np.ndarray, references: np.ndarray, concepts: list[str], noun: str = "scenes"
) -> dict:
    """Score the concepts predicted for scenes, or for other things that have one concept each.

    Args:
        predictions: (N,), index into `concepts` of the best one for each scene; or (N, k), best first.
        references: (N,), index of the right one.
        concepts: C names.
        noun: what is counted.

    Returns:
        `top1_micro`, the share that is right; `top1_macro`, the mean over the concepts that occur of each
        one's share; with k of 5 or more also `top5_micro` and `top5_macro`; `per_concept`, shares by name;
        and the counts `num_<noun>` and `num_per_concept`.

    Raises:
        ValueError: if there is nothing to score, lengths differ, or a reference is no index.

    Example:
        >>> score_concepts(np.array([0, 0, 1]), np.array([0, 1, 1]), ["port", "park"])["top1_macro"]
        0.75
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    if len(references) == 0:
        raise ValueError(f"there are no {noun} to score. Give at least one.")
    if len(predictions) != len(references):
        raise ValueError(
            f"there are {len(predictions)} predictions, but {len(references)} references. "
            f"Give one of both for each of the {noun}."
        )
    for i, reference in enumerate(references.tolist()):
        if not 0 <= reference < len(concepts):
            raise ValueError(
                f"references[{i}] is {reference}, which is no index into the {len(concepts)} concepts. "
                f"Give 0 to {len(concepts) - 1}."
            )
    is_hit = predictions.reshape(len(references), -1) == references[:, None]  # (N, k)
    members = {name: references == c for c, name in enumerate(concepts)}
    members = {name: member for name, member in members.items() if member.any()}
    scores = {}
    for k in (1, 5) if is_hit.shape[1] >= 5 else (1,):
        is_right = is_hit[:, :k].any(axis=1)
        shares = {name: float(is_right[member].mean()) for name, member in members.items()}
        scores |= {f"top{k}_micro": float(is_right.mean()), f"top{k}_macro": _mean(shares.values())}
        if k == 1:
            per_concept = shares
    return scores | {
        f"num_{noun}": len(references),
        "per_concept": per_concept,
        "num_per_concept": {name: int(member.sum()) for name, member in members.items()},
    }


def score_regions(
    predictions: np.ndarray, references: np.ndarray, concepts: list[str], areas: np.ndarray | None = None
) -> dict:
    """Score the concepts predicted for regions.

    Args:
        predictions: (N,), index into `concepts` of the best one for each region; or (N, k), best first.
        references: (N,), index of the right one.
        concepts: C names.
        areas: (N,), of the boxes, in pixels of the image as given; None leaves out the scores by size.

    Returns:
        what `score_concepts` gives, and with `areas` also `by_size`, top-1 shares by name, and `num_by_size`.

    Raises:
        ValueError: if there are no regions, or lengths differ.

    Example:
        >>> scores = score_regions([0, 0, 1], [0, 1, 1], ["ship", "bridge"], areas=[100, 400, 2000])
        >>> scores["by_size"]
        {'small': 0.5, 'medium': 1.0}
    """
    scores = score_concepts(predictions, references, concepts, "regions")
    if areas is not None:
        areas = np.asarray(areas)
        if len(areas) != len(references):
            raise ValueError(f"there are {len(areas)} areas, but {len(references)} regions. Give one each.")
        is_right = np.asarray(predictions).reshape(len(areas), -1)[:, 0] == np.asarray(references)
        sizes = {name: (low <= areas) & (areas < high) for name, (low, high) in SIZE_BOUNDS.items()}
        scores["by_size"] = {name: float(is_right[size].mean()) for name, size in sizes.items() if size.any()}
        scores["num_by_size"] = {name: int(size.sum()) for name, size in sizes.items()}
    return scores


def count_confusions(predictions: np.ndarray, references: np.ndarray, num_concepts: int) -> np.ndarray:
    """Count how often each concept was taken for each other.

    Args:
        predictions: (N,), the best concept of each; or (N, k), best first.
        references: (N,), the right one.
        num_concepts: C.

    Returns:
        (C, C), counts; a row per right concept, a column per answer.

    Example:
        >>> count_confusions(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
        [[1, 0], [1, 1]]
    """
    best = np.asarray(predictions).reshape(len(references), -1)[:, 0]
    counts = np.zeros((num_concepts, num_concepts), dtype=np.int64)
    np.add.at(counts, (np.asarray(references), best), 1)
    return counts


def rank_own(scores: np.ndarray, is_own: np.ndarray) -> np.ndarray:
    """Give the place of each query's best own candidate among those that are not its own.

    Args:
        scores: (Q, N), of queries and candidates.
        is_own: (Q, N), True where a candidate belongs to the query; at least one in each row.

    Returns:
        (Q,), 1 is the first place. A candidate of another query that scores as high comes first, so the place
        does not depend on how ties are sorted.

    Raises:
        ValueError: if a query has no candidate of its own, or a score is no number.

    Example:
        >>> rank_own(np.array([[0.3, 0.9, 0.3]]), np.array([[True, False, False]])).tolist()
        [3]
    """
    scores, is_own = np.asarray(scores), np.asarray(is_own, dtype=bool)
    if not is_own.any(axis=1).all():
        query = int(np.flatnonzero(~is_own.any(axis=1))[0])
        raise ValueError(f"query {query} has no candidate of its own, so nothing can be found. Leave it out.")
    if np.isnan(scores).any():
        query = int(np.flatnonzero(np.isnan(scores).any(axis=1))[0])
        raise ValueError(f"scores[{query}] holds values that are no numbers. Look for NaN in the embeddings.")
    best = np.where(is_own, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((scores >= best - TIE) & ~is_own).sum(axis=1)


def score_ranks(ranks: np.ndarray, recall_at: tuple[int, ...] = RECALL_AT) -> dict[str, float]:
    """Give the share of queries whose place is among the first k, for each k.

    Args:
        ranks: (Q,), places as `rank_own` gives them.
        recall_at: every k.

    Returns:
        `recall_at_<k>` for each k, and `mean_recall`, the mean over k of 1, 5 and 10.

    Raises:
        ValueError: if there are no queries.

    Example:
        >>> score_ranks(np.array([1, 3, 20]))["recall_at_5"]
        0.6666666666666666
    """
    ranks = np.asarray(ranks)
    if len(ranks) == 0:
        raise ValueError("there are no queries to score. Give at least one.")
    scores = {f"recall_at_{k}": float((ranks <= k).mean()) for k in recall_at}
    return scores | {"mean_recall": _mean((ranks <= k).mean() for k in RECALL_AT)}


def score_retrieval(ranks: dict[str, np.ndarray], recall_at: tuple[int, ...] = RECALL_AT) -> dict[str, float]:
    """Score several directions of retrieval.

    Args:
        ranks: places as `rank_own` gives them, by direction, such as `image_to_text`.
        recall_at: every k.

    Returns:
        `<direction>_recall_at_<k>` and `<direction>_mean_recall`; and `mean_recall` over all directions.

    Example:
        >>> scores = score_retrieval({"image_to_text": np.array([1]), "text_to_image": np.array([7])})
        >>> round(scores["mean_recall"], 4)
        0.6667
    """
    scores, means = {}, []
    for direction, places in ranks.items():
        recalls = score_ranks(places, recall_at)
        means.append(recalls["mean_recall"])
        scores |= {f"{direction}_{name}": recall for name, recall in recalls.items()}
    return scores | {"mean_recall": _mean(means)}


def score_hard_negatives(
    positives: np.ndarray, negatives: list[np.ndarray], kinds: list[list[str]] | None = None
) -> dict:
    """Say how often a phrase beats all of its hard negatives.

    Args:
        positives: (N,), the score of each region with its own phrase.
        negatives: for each region the scores with its hard negatives, any number of them.
        kinds: for each of those what was changed; None calls all of them `unknown`.

    Returns:
        `accuracy`, the share of regions whose phrase scores higher than every negative; `chance`, what
        guessing would give; `per_kind`, the same against the negatives of one kind alone, and
        `chance_per_kind`; `by_number`, by how many negatives a region has; and the counts `num_regions`
        (those with negatives), `num_negatives`, `num_per_kind`, `num_by_number`, in regions.

    Raises:
        ValueError: if lengths differ, or no region has a negative.

    Example:
        >>> scores = score_hard_negatives([0.5, 0.5], [[0.4], [0.1, 0.5]], [["colour"], ["size", "colour"]])
        >>> scores["accuracy"], scores["per_kind"]
        (0.5, {'colour': 0.5, 'size': 1.0})
    """
    kinds = [["unknown"] * len(scores) for scores in negatives] if kinds is None else kinds
    lengths = [len(scores) for scores in negatives]
    if len(positives) != len(lengths) or lengths != [len(names) for names in kinds]:
        raise ValueError(
            f"there are {len(positives)} positives, negatives for {len(lengths)} regions and kinds for "
            f"{len(kinds)}, or a region has more of one. Give one positive per region, one kind per negative."
        )
    if not any(lengths):
        raise ValueError("no region has a hard negative. Give rows that have hard_negatives.")
    wins = [
        np.asarray(positive) > np.asarray(scores) + TIE
        for positive, scores in zip(positives, negatives, strict=True)
    ]
    per_kind, by_number = {}, {}  # of each the pairs (was it right, the chance that a guess is)
    for win, names in zip(wins, kinds, strict=True):
        for kind in dict.fromkeys(names):
            beaten = win[[name == kind for name in names]]
            per_kind.setdefault(kind, []).append((beaten.all(), 1 / (1 + len(beaten))))
        if len(win):
            by_number.setdefault(len(win), []).append((win.all(), 1 / (1 + len(win))))
    every = [pair for pairs in by_number.values() for pair in pairs]
    per_kind = dict(sorted(per_kind.items()))
    by_number = {str(number): pairs for number, pairs in sorted(by_number.items())}
    return {
        "accuracy": _mean(right for right, _ in every),
        "chance": _mean(chance for _, chance in every),
        "num_regions": len(every),
        "num_negatives": sum(lengths),
        "per_kind": {kind: _mean(right for right, _ in pairs) for kind, pairs in per_kind.items()},
        "chance_per_kind": {kind: _mean(chance for _, chance in pairs) for kind, pairs in per_kind.items()},
        "num_per_kind": {kind: len(pairs) for kind, pairs in per_kind.items()},
        "by_number": {name: _mean(right for right, _ in pairs) for name, pairs in by_number.items()},
        "num_by_number": {name: len(pairs) for name, pairs in by_number.items()},
    }


def score_choices(scores: list[np.ndarray], answers: list[int], subjects: list[str] | None = None) -> dict:
    """Score multiple choice.

    Args:
        scores: for each question the scores of its options, two or more.
        answers: for each question the index of the right option.
        subjects: what each question is about, for scores by it; None leaves them out.

    Returns:
        `accuracy`, the share of questions whose right option scores higher than every other; `chance`, what
        guessing would give; `num_questions`; and with `subjects` the same by name: `per_subject`,
        `chance_per_subject`, `num_per_subject`.

    Raises:
        ValueError: if there are no questions, lengths differ, or an answer is no index.

    Example:
        >>> score_choices([[0.1, 0.3], [0.2, 0.2]], [1, 0])["accuracy"]
        0.5
    """
    if not len(scores) == len(answers) == len(scores if subjects is None else subjects):
        raise ValueError(
            f"there are {len(scores)} questions, {len(answers)} answers and "
            f"{'no' if subjects is None else len(subjects)} subjects. Give one of each per question."
        )
    if len(scores) == 0:
        raise ValueError("there are no questions to score. Give at least one.")
    is_right, chances = [], []
    for i, (options, answer) in enumerate(zip(scores, answers, strict=True)):
        if len(options) < 2 or not 0 <= answer < len(options):
            raise ValueError(
                f"question {i} has {len(options)} options, and its answer is number {answer} of them. "
                "Give two or more options, and count them from 0."
            )
        others = np.delete(np.asarray(options), answer)
        is_right.append(bool((options[answer] > others + TIE).all()))
        chances.append(1 / len(options))
    result = {"accuracy": _mean(is_right), "chance": _mean(chances), "num_questions": len(scores)}
    if subjects is None:
        return result
    members = {name: [] for name in sorted(set(subjects))}
    for i, name in enumerate(subjects):
        members[name].append(i)
    return result | {
        "per_subject": {name: _mean(is_right[i] for i in member) for name, member in members.items()},
        "chance_per_subject": {name: _mean(chances[i] for i in member) for name, member in members.items()},
        "num_per_subject": {name: len(member) for name, member in members.items()},
    }


def measure_coherence(patch_embeds: np.ndarray) -> dict[str, float]:
    """Say how much more alike neighbouring patches are than any two patches of the image.

    Training regions can break the dense map: patches then differ from their neighbours as from anything else
    (coherence near 0), or all become the same (`any_cosine` near 1).

    Args:
        patch_embeds: (B, D, h, w), unit vectors; h and w are 2 or more.

    Returns:
        `neighbour_cosine`, the mean over patches side by side or one above the other; `any_cosine`, the mean
        over all pairs of different patches of an image; `coherence`, the first less the second.

    Raises:
        ValueError: if the grid has one row or column.

    Example:
        >>> halves = np.array([[[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]]])  # (1, 2, 2, 2)
        >>> measure_coherence(halves)["neighbour_cosine"]
        0.5
    """
    patches = np.asarray(patch_embeds, dtype=np.float64)
    h, w = patches.shape[2:]
    if min(h, w) < 2:
        raise ValueError(f"the dense map has {h} x {w} patches; neighbours need 2 x 2. Give larger images.")
    across = (patches[..., :, 1:] * patches[..., :, :-1]).sum(axis=1)  # (B, h, w - 1)
    down = (patches[..., 1:, :] * patches[..., :-1, :]).sum(axis=1)  # (B, h - 1, w)
    neighbour = float(np.concatenate([across.ravel(), down.ravel()]).mean())
    # The squared length of the sum of all vectors is the sum of all cosines, each patch with itself included.
    total = (patches.sum(axis=(2, 3)) ** 2).sum(axis=1)
    own = (patches**2).sum(axis=(1, 2, 3))
    anywhere = float(((total - own) / (h * w * (h * w - 1))).mean())
    return {"neighbour_cosine": neighbour, "any_cosine": anywhere, "coherence": neighbour - anywhere}


def measure_drift(embeds: np.ndarray, start_embeds: np.ndarray) -> dict[str, float]:
    """Say how far embeddings have moved from those of the model that training started from.

    Args:
        embeds: (N, D), unit vectors.
        start_embeds: (N, D), unit vectors of the same things.

    Returns:
        `cosine_to_start`, the mean over N, and `lowest_cosine_to_start`.

    Raises:
        ValueError: if shapes differ.

    Example:
        >>> measure_drift(np.eye(2), np.array([[1.0, 0.0], [1.0, 0.0]]))
        {'cosine_to_start': 0.5, 'lowest_cosine_to_start': 0.0}
    """
    embeds, start_embeds = (np.asarray(array, dtype=np.float64) for array in (embeds, start_embeds))
    if embeds.shape != start_embeds.shape:
        raise ValueError(
            f"embeddings of shape {embeds.shape} cannot be compared with {start_embeds.shape} of the start. "
            "Give the same things in the same order, and models of one width."
        )
    cosines = (embeds * start_embeds).sum(axis=1)
    return {"cosine_to_start": float(cosines.mean()), "lowest_cosine_to_start": float(cosines.min())}


def _mean(numbers) -> float:
    return float(np.mean(list(numbers)))
