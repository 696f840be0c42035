"""Options of the command line: the parser agrees with that of transformers, and imports nothing heavy."""

import pytest
from transformers import HfArgumentParser

from geoalign_hf.cli import find_function
from geoalign_hf.options import DataclassParser
from geoalign_hf_cli import VERBS


def describe(parser) -> dict:
    """Describe the options of a parser by their names."""
    return {
        tuple(action.option_strings): (
            action.nargs, action.const, action.default, action.required,
            list(action.choices) if action.choices else None,
            getattr(action.type, "__name__", None) if action.type in (int, float, str) else None,
        )
        for action in parser._actions
    }  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_options_are_those_of_the_parser_of_transformers(verb):
    hints = find_function(verb).__annotations__
    types = [kind for name, kind in hints.items() if name != "return"]
    settings = {"conflict_handler": "resolve", "allow_abbrev": False}
    assert describe(DataclassParser(types, **settings)) == describe(HfArgumentParser(types, **settings))


def test_words_become_what_the_parser_of_transformers_makes_of_them(tmp_path):
    hints = find_function("train").__annotations__
    types = [kind for name, kind in hints.items() if name != "return"]
    words = [
        "--output_dir",
        str(tmp_path),
        "--lr-scheduler-type",
        "linear",
        "--bf16",
        "no",
        "--logging_steps",
        "7",
    ]
    words += [
        "--no_turn",
        "--report_to",
        "none",
        "--learning_rate",
        "1e-3",
        "--activation_checkpointing",
        "--x",
    ]
    settings = {"conflict_handler": "resolve", "allow_abbrev": False}
    ours, rest = DataclassParser(types, **settings).parse_dataclasses(words)
    *theirs, other_rest = HfArgumentParser(types, **settings).parse_args_into_dataclasses(
        words, return_remaining_strings=True, look_for_args_file=False
    )
    assert rest == other_rest == ["--x"]
    for one, other in zip(ours, theirs, strict=True):
        differ = {"logging_dir", "distributed_state"}  # a default by the time, and an object of the process
        found, expected = ({k: v for k, v in vars(x).items() if k not in differ} for x in (one, other))
        assert found == expected
