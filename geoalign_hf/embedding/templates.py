"""Template sets: the sentences that a concept's name is put into."""

from ..model.processing_geoalign_clip import CONCEPT_TEMPLATES

VIEWS = (
    "a satellite",
    "an aerial",
    "an overhead",
    "a remote sensing",
    "a high-resolution satellite",
    "a low-resolution aerial",
)
PICTURES = ("photo", "image", "picture")
SENTENCES = (
    "{} of {{}}.",
    "{} of a {{}}.",
    "{} that shows {{}}.",
    "{{}} in {}.",
    "{{}} can be seen in {}.",
)
# The same weights differ by several points, on EuroSAT by 20, between sets: results name theirs.
TEMPLATE_SETS = {
    "geoalign": CONCEPT_TEMPLATES,
    "clip": ("This is a photo of {}.",),  # of transformers' zero-shot pipeline
    # SkyScript, https://arxiv.org/abs/2312.12856, prompt_templates.py
    "skyscript": ("a satellite photo of {}.", "a satellite image of {}"),
    # In size and spirit as the 105 of RS5M, https://arxiv.org/abs/2306.11300, in words of our own.
    "overhead": tuple(
        sentence.format(f"{view} {picture}")
        for view in VIEWS
        for picture in PICTURES
        for sentence in SENTENCES
    ),
}


def resolve_templates(templates: str | tuple[str, ...]) -> tuple[str, ...]:
    """Give the templates of a set that is named, or those that are given.

    Raises:
        ValueError: if there is no set of this name.

    Example:
        >>> resolve_templates("clip")
        ('This is a photo of {}.',)
    """
    if not isinstance(templates, str):
        return tuple(templates)
    if templates not in TEMPLATE_SETS:
        raise ValueError(
            f"there is no template set {templates!r}; there are {sorted(TEMPLATE_SETS)}. "
            "Name one of them, or give the templates themselves."
        )
    return TEMPLATE_SETS[templates]
