"""Concepts: how their names are worded, and the bank that keeps their embeddings in a safetensors file."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..model.modeling_geoalign_clip import GeoAlignCLIPModel
from ..model.processing_geoalign_clip import CONCEPT_TEMPLATES, GeoAlignCLIPProcessor


@dataclass(frozen=True)
class ConceptBank:
    """Named concepts with the unit vectors that stand for them.

    Args:
        concepts: C names.
        embeds: (C, D), unit vectors.
        templates: the sentences that worded each concept.
    """

    concepts: list[str]
    embeds: torch.Tensor
    templates: tuple[str, ...] = CONCEPT_TEMPLATES

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        model: GeoAlignCLIPModel,
        processor: GeoAlignCLIPProcessor,
        concepts: list[str],
        templates: tuple[str, ...] = CONCEPT_TEMPLATES,
        batch_size: int = 256,
    ) -> "ConceptBank":
        """Embed concepts with a model.

        Args:
            model: in evaluation mode, else dropout makes the embeddings random.
            processor: of that model.
            concepts: C different names.
            templates: sentences with one `{}`.
            batch_size: concepts per call.

        Raises:
            ValueError: if a name occurs twice or is empty, or a template has no `{}`.
        """
        if repeated := sorted({name for name in concepts if concepts.count(name) > 1}):
            raise ValueError(f"the concepts {repeated} occur more than once. Name every concept once.")
        embeds = []
        for start in range(0, max(len(concepts), 1), batch_size):
            tokens = processor.tokenize_concepts(concepts[start : start + batch_size], templates)
            embeds.append(model.embed_concepts(**tokens.to(model.device)).float().cpu())
        return cls(list(concepts), torch.cat(embeds), tuple(templates))

    def save(self, path: str | Path) -> None:
        """Write the bank to one safetensors file; names and templates are in its metadata."""
        metadata = {"concepts": json.dumps(self.concepts), "templates": json.dumps(self.templates)}
        save_file({"embeds": self.embeds.contiguous()}, path, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "ConceptBank":
        """Read a bank that `save` wrote.

        Raises:
            ValueError: if the file holds something else.
        """
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if not {"concepts", "templates"} <= metadata.keys() or "embeds" not in file.keys():  # noqa: SIM118
                raise ValueError(f"{path} is no concept bank: it has the keys {sorted(file.keys())}.")
            concepts, templates = json.loads(metadata["concepts"]), tuple(json.loads(metadata["templates"]))
            return cls(concepts, file.get_tensor("embeds"), templates)
