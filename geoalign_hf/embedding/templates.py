"""Template sets, and the checks of concepts, templates and texts that all entry points share."""

from collections.abc import Sequence

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
# The accuracy of one model differs between sets by several points, on EuroSAT by 20, so results name theirs.
TEMPLATE_SETS = {
    "geoalign": CONCEPT_TEMPLATES,
    "clip": ("This is a photo of {}.",),  # default of transformers' zero-shot pipeline
    # SkyScript, https://arxiv.org/abs/2312.12856, prompt_templates.py
    "skyscript": ("a satellite photo of {}.", "a satellite image of {}"),
    # Similar in size and style to the 105 templates of RS5M, https://arxiv.org/abs/2306.11300; our own
    # wording.
    "overhead": tuple(
        sentence.format(f"{view} {picture}")
        for view in VIEWS
        for picture in PICTURES
        for sentence in SENTENCES
    ),
}


def resolve_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Look up a template set by its name, or check the templates that are given.

    Args:
        templates: name of a set of `TEMPLATE_SETS`, or sentences with one `{}` for the concept.

    Raises:
        ValueError: if there is no set of this name, there are no templates, or one does not have exactly one
            `{}`.

    Example:
        >>> resolve_templates("clip")
        ('This is a photo of {}.',)
    """
    if isinstance(templates, str):
        if templates not in TEMPLATE_SETS:
            raise ValueError(
                f"There is no template set {templates!r}; there are {sorted(TEMPLATE_SETS)}. "
                "Name one of them, or give a list of templates."
            )
        return TEMPLATE_SETS[templates]
    if len(templates) == 0:
        raise ValueError("templates is empty; it must hold at least one sentence with {} for the concept.")
    for t, template in enumerate(templates):
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ValueError(f"templates[{t}] = {template!r} must hold one {{}}, where the concept goes.")
    return tuple(templates)


def split_concepts(concepts: str | Sequence[str]) -> list[str]:
    """Make a list of concepts; one string is split at its commas, as transformers does with candidate labels.

    Example:
        >>> split_concepts("ship, storage tank")
        ['ship', 'storage tank']
    """
    if isinstance(concepts, str):
        return [name.strip() for name in concepts.split(",")]
    return list(concepts)


def check_concepts(concepts: str | Sequence[str]) -> list[str]:
    """Make a list of concepts, and check that each is a different name.

    Raises:
        ValueError: if there are no concepts, one occurs twice, is empty or is not a string.
    """
    concepts = split_concepts(concepts)
    if not concepts:
        raise ValueError("concepts is []; it must be a list of at least one name.")
    check_texts(concepts, "concepts")
    if repeated := sorted({name for name in concepts if concepts.count(name) > 1}):
        raise ValueError(f"The concepts {repeated} occur more than once. Name every concept once.")
    return concepts


def check_texts(texts: Sequence[str], name: str) -> None:
    """Check that an argument is a list of texts.

    Args:
        texts: any number of texts.
        name: name of the argument, for messages.

    Raises:
        ValueError: if it is a single string, or an entry is not a string or has no word.
    """
    if isinstance(texts, str):
        raise ValueError(f"{name} is the string {texts!r}; it must be a list of texts. Give [{texts!r}].")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{i}] is {text!r}, a {type(text).__name__}; it must be a string.")
        if not text.strip():
            raise ValueError(f"{name}[{i}] is empty; every text needs at least one word. Remove it.")
