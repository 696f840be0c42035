"""The entry point of the `geoalign-hf` command: find the verb, then import what runs it.

This file lies beside the package, because importing the package imports torch, which takes seconds. `--help`,
`--version`, a misspelled verb and `build` by rules do not need it.
"""

import os
import sys
from difflib import get_close_matches
from importlib import import_module

# Each verb and its help. `geoalign_hf.commands` has a function of the same name, with underscores, in the
# module that is named like the first word.
VERBS = {
    "convert": "Convert a CLIP checkpoint into a GeoAlignCLIP.",
    "build": "Build a dataset of rows from annotated images.",
    "train": "Train a GeoAlignCLIP on rows.",
    "check-leakage": "Find images and captions of evaluation sets in a dataset.",
    "evaluate regions": "Score the concepts and phrases of ground-truth boxes.",
    "evaluate scenes": "Score zero-shot scene classification.",
    "evaluate retrieval": "Score the retrieval of images and captions.",
    "evaluate choice": "Score multiple-choice questions.",
    "evaluate localization": "Draw and score maps of where phrases are true in large images.",
    "evaluate detection": "Score detections from proposals or from a grid.",
    "embed": "Embed a folder of images and the boxes in them.",
    "search": "Search embedded images by text or by example.",
    "scene score": "Map how similar the places of a georeferenced scene are to texts.",
    "scene classify": "Name the regions of a vector file in a georeferenced scene.",
    "scene detect": "Detect objects in a georeferenced scene, from proposals or by a grid.",
    "scene embed": "Embed the tiles and regions of georeferenced scenes into an archive.",
    "scene search": "Search an archive of scenes for places, by text or by example.",
    "detect": "Detect objects: name proposals, or windows of a grid, with labels.",
    "adapt": "Adapt a model to new concepts from a few boxes of each.",
    "export": "Export a model to ONNX.",
    "push": "Push a model, an adapter or a dataset to the Hub.",
}
USAGE = """usage: geoalign-hf VERB [OPTIONS]
       geoalign-hf VERB --help      show the options of a verb
       geoalign-hf --version        show the versions of geoalign_hf, torch, transformers and Python

{verbs}

A mistake in the input prints one line and ends with exit code 2. --debug shows the traceback.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: Words after the name of the command. None takes those of this process.

    Returns:
        The exit code: 0, 2 for an error of the user, or 130 after Ctrl-C.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words == ["--version"]:
        import_without_models()
        from geoalign_hf.cli import describe_versions

        print(describe_versions())
        return 0
    for length in (2, 1):
        verb = " ".join(words[:length])
        if verb in VERBS:
            if verb in ("build", "check-leakage") and "--model" not in words:
                import_without_models()
            from geoalign_hf.cli import run

            return run(verb, words[length:])
    group = {verb: text for verb, text in VERBS.items() if words and verb.startswith(f"{words[0]} ")}
    if words in ([], ["-h"], ["--help"]) or group and words[1:] in ([], ["-h"], ["--help"]):
        print(write_usage(group or VERBS), end="")
        return 0 if "-h" in words or "--help" in words else 2
    verb = " ".join(words[: 2 if group else 1])
    close = get_close_matches(verb, VERBS, n=1)
    hint = f"Did you mean '{close[0]}'?" if close else "See geoalign-hf --help."
    print(f"geoalign-hf: error: '{verb}' is not a verb. {hint}", file=sys.stderr)
    return 2


def import_without_models() -> None:
    """Import the package without torch and transformers, unless it is imported already."""
    os.environ["GEOALIGN_HF_REGISTER"] = "0"
    try:
        import_module("geoalign_hf")
    finally:
        del os.environ["GEOALIGN_HF_REGISTER"]


def write_usage(verbs: dict[str, str]) -> str:
    """Write the help that lists verbs."""
    return USAGE.format(verbs="\n".join(f"  {verb:24}{text}" for verb, text in verbs.items()))


if __name__ == "__main__":
    sys.exit(main())
