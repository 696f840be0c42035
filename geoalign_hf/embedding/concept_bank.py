"""A bank of concept embeddings, stored in one safetensors file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..model.modeling_geoalign_clip import GeoAlignCLIPModel
from ..model.processing_geoalign_clip import CONCEPT_TEMPLATES, GeoAlignCLIPProcessor
from ..storage import atomic_file
from .embedder import evaluation_mode
from .templates import check_concepts, resolve_templates


@dataclass(frozen=True)
class ConceptBank:
    """Named concepts and their embeddings.

    Args:
        concepts: C names.
        embeds: (C, D), unit vectors.
        templates: sentences that each concept was put into.

    Raises:
        ValueError: if `embeds` has another shape, or a row of it is zero or not finite.
    """

    concepts: list[str]
    embeds: torch.Tensor
    templates: tuple[str, ...] = CONCEPT_TEMPLATES

    def __post_init__(self):
        if self.embeds.ndim != 2 or len(self.embeds) != len(self.concepts):
            raise ValueError(
                f"embeds has the shape {tuple(self.embeds.shape)}; expected ({len(self.concepts)}, D), "
                f"one row for each of the {len(self.concepts)} concepts."
            )
        if not self.embeds.is_floating_point():
            raise ValueError(f"embeds has the type {self.embeds.dtype}; expected floating-point numbers.")
        if not (is_finite := self.embeds.isfinite().all(dim=1)).all():
            row = int(is_finite.int().argmin())
            raise ValueError(
                f"embeds[{row}], of {self.concepts[row]!r}, holds NaN or infinity. Build the bank again "
                "with a model whose weights are finite."
            )
        if (is_zero := (self.embeds == 0).all(dim=1)).any():
            row = int(is_zero.int().argmax())
            raise ValueError(
                f"embeds[{row}], of {self.concepts[row]!r}, is zero, so that it is similar to nothing. Build "
                "the bank again."
            )

    @classmethod
    def build(
        cls,
        model: GeoAlignCLIPModel,
        processor: GeoAlignCLIPProcessor,
        concepts: str | Sequence[str],
        templates: str | Sequence[str] = CONCEPT_TEMPLATES,
        batch_size: int = 256,
    ) -> "ConceptBank":
        """Embed concepts with a model.

        Args:
            model: model that is switched to evaluation mode for the call and back.
            processor: processor of that model.
            concepts: C different names; one string is split at its commas.
            templates: sentences with one `{}` for the concept, or the name of a template set.
            batch_size: number of concepts per forward pass.

        Raises:
            ValueError: if there are no concepts, one occurs twice or is empty, or a template has no `{}`.
        """
        concepts, templates = check_concepts(concepts), resolve_templates(templates)
        embeds = []
        for start in range(0, len(concepts), batch_size):
            tokens = processor.tokenize_concepts(concepts[start : start + batch_size], templates)
            with evaluation_mode(model):
                embeds.append(model.embed_concepts(**tokens.to(model.device)).float().cpu())
        return cls(concepts, torch.cat(embeds), templates)

    def save(self, path: str | Path) -> None:
        """Write the bank to one safetensors file, atomically. Names and templates are in its metadata."""
        metadata = {"concepts": json.dumps(self.concepts), "templates": json.dumps(self.templates)}
        content = save({"embeds": self.embeds.contiguous()}, metadata)
        with atomic_file(path) as file:
            file.write(content)

    @classmethod
    def load(cls, path: str | Path) -> "ConceptBank":
        """Read a bank that `save` wrote.

        Raises:
            ValueError: if the file is damaged or holds something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata, keys = file.metadata() or {}, sorted(file.keys())
                if "embeds" not in keys or not {"concepts", "templates"} <= metadata.keys():
                    raise ValueError(f"it has the tensors {keys} and the metadata {sorted(metadata)}")
                embeds = file.get_tensor("embeds")
            concepts, templates = (_read_texts(metadata, name) for name in ("concepts", "templates"))
            return cls(concepts, embeds, tuple(templates))
        except (SafetensorError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a concept bank: {error}. Build it again.") from error


def _read_texts(metadata: dict[str, str], name: str) -> list[str]:
    """Read a list of texts from the metadata of a file."""
    texts = json.loads(metadata[name])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"its {name} are {metadata[name]:.60}; expected a list of texts")
    return texts
