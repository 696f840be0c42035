"""Relations between concepts: which may name the same thing, and which look alike from above."""

# Concepts that look alike from above. They are exchanged for each other before others are.
LOOK_ALIKES = (
    {"tennis court", "basketball court", "baseball diamond", "ground track field", "soccer ball field"},
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


def may_be_same(first: str, second: str) -> bool:
    """Return whether two concepts may name one thing: synonyms, or a concept and a narrower one.

    Example:
        >>> may_be_same("vehicle", "small vehicle"), may_be_same("small vehicle", "large vehicle")
        (True, False)
    """
    words = [set(name.split()) for name in (first, second)]
    is_narrower = words[0] <= words[1] or words[1] <= words[0]
    return is_narrower or any({first, second} <= names for names in SYNONYMS)


def prefer_look_alikes(concept: str, absent: list[str]) -> list[str]:
    """Return those of the absent concepts that look like this one, or all of them if none does."""
    alike = [name for name in absent if any({concept, name} <= names for names in LOOK_ALIKES)]
    return alike or absent
