"""Search an archive of scenes: the places that are most similar to a text or an image."""

import heapq
from pathlib import Path

import geopandas
import pandas
import torch
from pyarrow import parquet

from ..embedding.shards import check_weights
from ..storage import read_json
from .archive import DESCRIPTION


def read_description(archive: str | Path) -> dict:
    """Read the `scenes.json` of an archive.

    Raises:
        ValueError: if the archive has no such file, or parts that it lists do not exist yet.
    """
    path = Path(archive) / DESCRIPTION
    if not path.exists():
        raise ValueError(f"{archive} has no {DESCRIPTION}. Give a folder that geoalign-hf scene embed wrote.")
    description = read_json(path)
    parts = description["parts"]
    if missing := [name for name in parts if not (Path(archive) / name).exists()]:
        raise ValueError(
            f"{archive} lacks {len(missing)} of {len(parts)} files; the first one is {missing[0]}. "
            "Run geoalign-hf scene embed again with the same arguments to write them."
        )
    return description


def check_model(archive: str | Path, model: torch.nn.Module) -> None:
    """Refuse to search an archive with another model than the one that made it.

    Raises:
        ValueError: if the archive was made with other weights.
    """
    check_weights(read_description(archive), archive, model)


def search_archive(
    archive: str | Path, query_embed: torch.Tensor, top_k: int = 10, kind: str | None = None
) -> geopandas.GeoDataFrame:
    """Find the places of an archive that are most similar to a query.

    Args:
        archive: folder that `SceneJob` wrote.
        query_embed: (D,), unit vector of the same model.
        top_k: number of places.
        kind: "tile" or "region"; None searches both.

    Returns:
        The places with their `cosine`, the most similar first, in WGS 84.

    Raises:
        ValueError: if the archive is not complete, or holds nothing of this kind.
    """
    best = []  # (cosine, file, row)
    for name in read_description(archive)["parts"]:
        file = Path(archive) / name
        table = parquet.read_table(file, columns=["kind", "embed"])
        embeds = table["embed"].combine_chunks().flatten().to_numpy().reshape(len(table), len(query_embed))
        cosines = embeds @ query_embed.numpy()
        rows = [row for row, of_row in enumerate(table["kind"].to_pylist()) if kind in (None, of_row)]
        best += [(cosines[row], file, row) for row in rows]
        best = heapq.nlargest(top_k, best, key=lambda place: place[0])
    if not best:
        raise ValueError(f"{archive} holds nothing of the kind {kind!r}; kinds are 'tile' and 'region'.")
    frames = {
        file: geopandas.read_parquet(file).drop(columns="embed") for file in {place[1] for place in best}
    }
    found = pandas.concat([frames[file].iloc[[row]].assign(cosine=cosine) for cosine, file, row in best])
    return found.reset_index(drop=True)
