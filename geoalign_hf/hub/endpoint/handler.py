"""Region classification over HTTP, for Hugging Face Inference Endpoints.

A request is JSON: `{"inputs": {"image": <base64 of an image file>, "boxes": [[x0, y0, x1, y1], ...],
"candidate_labels": [...]}, "parameters": {"top_k": 3}}`. `quads` may stand in place of `boxes`. The answer is
a list with one entry per region, each a list of `{"score", "label", "box"}`, best first.
"""

import base64
import binascii
from typing import Any

from transformers import pipeline

KEYS = ("image", "boxes", "quads", "candidate_labels")


class EndpointHandler:
    """Answers requests.

    Args:
        path: Folder of the model.
    """

    def __init__(self, path: str = ""):
        self.classify = pipeline("zero-shot-region-classification", model=path or ".", trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list | dict[str, str]:
        """Answer one request; a mistake in it gives `{"error": message}`."""
        try:
            return self._answer(data)
        except (ValueError, TypeError) as error:
            return {"error": str(error)}

    def _answer(self, data: dict[str, Any]) -> list:
        if not isinstance(data, dict):
            raise ValueError(f"a request must be an object with inputs; found a {type(data).__name__}.")
        inputs, parameters = data.get("inputs"), data.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ValueError(
                f"parameters must be an object of options, such as top_k; found {parameters!r:.60}."
            )
        if moved := sorted({*KEYS, "images"} & parameters.keys()):
            raise ValueError(f"parameters must be options, such as top_k; {moved} belong to inputs.")
        if not isinstance(inputs, dict) or not inputs.keys() >= {"image", "candidate_labels"}:
            raise ValueError(
                f"inputs must be an object with {', '.join(KEYS)}; give image, boxes and labels."
            )
        if unknown := sorted(inputs.keys() - set(KEYS)):
            raise ValueError(f"inputs has the unknown keys {unknown}; it takes {', '.join(KEYS)}.")
        regions = {form: inputs[form] for form in ("boxes", "quads") if form in inputs}
        return self.classify(
            decode_file(inputs["image"]), candidate_labels=inputs["candidate_labels"], **regions, **parameters
        )


def decode_file(text: str) -> bytes:
    """Decode the base64 of a file.

    Raises:
        ValueError: If it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError) as error:
        raise ValueError(f"image must be the base64 of an image file ({error}).") from error
