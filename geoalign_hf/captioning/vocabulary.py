"""Relations between concepts: which are narrower than others, may name the same thing, or look alike.

`vocabulary.yaml` lists the concepts that recipes use, in a hierarchy: a concept stands below a broader one.
"""

from functools import cache, lru_cache
from pathlib import Path

import yaml

# Concepts that look alike from above. They are exchanged for each other before others are.
LOOK_ALIKES = (
    {
        "tennis court",
        "basketball court",
        "baseball diamond",
        "ground track field",
        "soccer ball field",
        "soccer field",
    },
    {"ship", "harbor", "bridge"},
    {"airplane", "helicopter", "airport"},
    {"storage tank", "roundabout", "chimney", "windmill"},
    {"small vehicle", "large vehicle"},
    {"car", "truck", "bus", "van"},
    {"bridge", "dam", "road", "runway"},
    {"road", "tennis court"},
)
# Concepts that may name the same thing. They are never exchanged for each other.
SYNONYMS = (
    {"airplane", "plane", "aircraft"},
    {"ship", "boat", "vessel", "ferry", "yacht"},
    {"harbor", "harbour", "port", "dock", "pier"},
    {"storage tank", "oil tank", "tank", "storagetank"},
    {"baseball diamond", "baseball field", "baseballfield"},
    {"ground track field", "groundtrackfield", "athletic field", "stadium", "playground"},
    {"soccer ball field", "football field", "soccer field", "ground track field", "stadium", "playground"},
    {"bridge", "overpass"},
    {"airport", "runway", "apron"},
    {"car", "small vehicle"},
    {"truck", "large vehicle"},
    {"bus", "large vehicle"},
    *({"vehicle", name} for name in ("car", "truck", "bus", "van")),
)


@cache
def load_vocabulary() -> dict[str, tuple[str, ...]]:
    """Return all concepts of the vocabulary, each with the broader concepts above it, the nearest first.

    Example:
        >>> load_vocabulary()["small car"]
        ('car', 'small vehicle', 'vehicle')
    """
    found: dict[str, tuple[str, ...]] = {}

    def collect(concepts: dict, above: tuple[str, ...]):
        for name, below in concepts.items():
            found[name] = above
            collect(below or {}, (name, *above))

    collect(yaml.safe_load(Path(__file__).with_name("vocabulary.yaml").read_text(encoding="utf-8")), ())
    return found


def is_broader(first: str, second: str) -> bool:
    """Return whether the first concept is broader than the second.

    Example:
        >>> is_broader("vehicle", "bus"), is_broader("bus", "vehicle")
        (True, False)
    """
    return first in load_vocabulary().get(second, ())


@lru_cache(maxsize=100_000)  # few concepts are compared for every phrase
def may_be_same(first: str, second: str) -> bool:
    """Return whether two concepts may name one thing: synonyms, or a concept and a narrower one.

    Example:
        >>> may_be_same("vehicle", "small vehicle"), may_be_same("small vehicle", "large vehicle")
        (True, False)
    """
    words = [set(name.split()) for name in (first, second)]
    is_narrower = words[0] <= words[1] or words[1] <= words[0]
    is_narrower |= is_broader(first, second) or is_broader(second, first)
    return is_narrower or any({first, second} <= names for names in SYNONYMS)


def prefer_look_alikes(concept: str, absent: list[str]) -> list[str]:
    """Return those of the absent concepts that look like this one, or all of them if none does."""
    alike = [name for name in absent if any({concept, name} <= names for names in LOOK_ALIKES)]
    return alike or absent
