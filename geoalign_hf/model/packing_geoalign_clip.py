# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""Packing: several short texts share one row of tokens, and the text tower keeps them apart.

A training batch holds descriptions, captions, phrases, concepts and hard negatives. Padding all of them to
the longest would make most tokens padding. Packed rows come with `text_ids`, the number of the text that each
token belongs to. Positions, attention and the ends of the texts follow from `text_ids` alone.
"""

import torch

NO_TEXT = -100


def pack_texts(
    texts: list[list[int]], pad_token_id: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put texts one after another into rows that are as long as the longest text.

    Args:
        texts: N texts as token ids, each with its start and end token. No text is split.
        pad_token_id: token that fills the rest of a row.

    Returns:
        `input_ids` (M, L); `text_ids` (M, L), the number of the text of each token, -100 for padding, counted
        row by row; and `order` (N,): text n of the rows is `texts[order[n]]`.

    Raises:
        ValueError: if there is no text, or a text has no token.

    Source:
        Best-fit decreasing bin packing; for language models https://arxiv.org/abs/2107.02027.

    Example:
        >>> input_ids, text_ids, order = pack_texts([[1, 5, 2], [1, 6, 7, 8, 2], [1, 2]])
        >>> input_ids.tolist()
        [[1, 6, 7, 8, 2], [1, 5, 2, 1, 2]]
        >>> text_ids.tolist(), order.tolist()
        ([[0, 0, 0, 0, 0], [1, 1, 1, 2, 2]], [1, 0, 2])
    """
    if not texts or not all(texts):
        raise ValueError(
            f"there are {len(texts)} texts, and {texts.count([])} of them are empty. Every text needs tokens."
        )
    L = max(map(len, texts))
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(L + 1)]  # rows by their number of free places
    for n in sorted(range(len(texts)), key=lambda n: -len(texts[n])):
        length = len(texts[n])
        room = next((room for room in range(length, L + 1) if with_room[room]), None)
        if room is None:
            rows.append([])
        row = len(rows) - 1 if room is None else with_room[room].pop()
        rows[row].append(n)
        with_room[(L if room is None else room) - length].append(row)
    input_ids = torch.full((len(rows), L), pad_token_id)
    text_ids = torch.full((len(rows), L), NO_TEXT)
    order = [n for row in rows for n in row]
    number = 0
    for m, row in enumerate(rows):
        start = 0
        for n in row:
            stop = start + len(texts[n])
            input_ids[m, start:stop] = torch.tensor(texts[n])
            text_ids[m, start:stop] = number
            start, number = stop, number + 1
    return input_ids, text_ids, torch.tensor(order)


def locate_texts(text_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the positions, the attention mask and the ends of packed texts.

    Args:
        text_ids: (M, L), as returned by `pack_texts`.

    Returns:
        `position_ids` (M, L), the position of each token in its own text; `attention_mask` (M, 1, L, L), True
        where a token may attend: to itself and to earlier tokens of its own text; and `ends` (N,), the index
        of the last token of each text in the flattened (M * L) rows.

    Example:
        >>> position_ids, attention_mask, ends = locate_texts(torch.tensor([[0, 0, 0, 1, 1, -100]]))
        >>> position_ids.tolist(), ends.tolist()
        ([[0, 1, 2, 0, 1, 0]], [2, 4])
        >>> attention_mask[0, 0, 4].tolist()
        [False, False, False, True, True, False]
    """
    L = text_ids.shape[1]
    places = torch.arange(L, device=text_ids.device)
    is_other = text_ids[:, 1:] != text_ids[:, :-1]
    starts = torch.nn.functional.pad(is_other, (1, 0), value=True)
    position_ids = places - (places * starts).cummax(dim=1).values
    is_same = text_ids.unsqueeze(2) == text_ids.unsqueeze(1)  # (M, L, L)
    attention_mask = (is_same & (places.unsqueeze(1) >= places)).unsqueeze(1)
    is_end = torch.nn.functional.pad(is_other, (0, 1), value=True) & (text_ids != NO_TEXT)
    return position_ids, attention_mask, is_end.flatten().nonzero().squeeze(1)


def convert_mask(attention_mask: torch.Tensor, text_model: torch.nn.Module) -> torch.Tensor:
    """Convert a mask of `locate_texts` to the form that the attention of a text tower takes.

    Raises:
        ValueError: if it is an attention that takes no mask of pairs.
    """
    attention, dtype = text_model.config._attn_implementation, text_model.dtype
    if attention not in ("sdpa", "eager"):
        raise ValueError(
            f"packed texts need the attention sdpa or eager, but the text tower uses {attention!r}. "
            'Load the model with attn_implementation={"text_config": "sdpa"}.'
        )
    if attention == "eager":  # it adds the mask to the scores
        return (~attention_mask).to(dtype) * torch.finfo(dtype).min
    return attention_mask
