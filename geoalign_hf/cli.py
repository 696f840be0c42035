"""Runs one verb of `geoalign-hf`: options from dataclasses, errors of the user in one line.

The function of a verb has one parameter for each of its dataclasses of options, and returns the path of what
it wrote, or None. Its signature is therefore the command line.
"""

import logging
import os
import platform
import re
import sys
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter, ArgumentTypeError, Namespace
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn, get_args, get_origin, get_type_hints

from . import __version__
from .options import DataclassParser

PACKAGE = Path(__file__).parent
NEGATIVE_NUMBERS = re.compile(r"-[\d.,-]+$")  # values that begin with a minus; no option is named so
EXTRAS = {"faiss": "search", "onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx"}
EXTRAS |= {"rasterio": "geo", "geopandas": "geo", "pycocotools": "detect", "shapely": "detect"}


class HelpFormatter(ArgumentDefaultsHelpFormatter):
    """Shows each option under one name, and its default where it has one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=110)

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings or action.dest == "help":
            return super()._format_action_invocation(action)
        name = action.option_strings[0]
        return (
            name if action.nargs in (0, "?") else f"{name} {self._format_args(action, action.dest.upper())}"
        )

    def _get_help_string(self, action: Action) -> str | None:
        default = action.default
        if action.nargs == 0 or isinstance(default, bool) or default in (None, SUPPRESS, "", []):
            return action.help if default is not True else f"{action.help} (default: on)"
        if isinstance(default, list):
            return f"{action.help} (default: {' '.join(map(str, default))})"
        return super()._get_help_string(action)


class OptionParser(DataclassParser):
    """A parser of dataclasses whose errors are one line.

    The first dataclass may have these attributes:

    - `_positional`: fields that can be given in this order, without their names.
    - `_defaults`: a function of what is parsed that returns defaults of other options.
    - `_also_shown`: help texts of inherited options of a library's dataclass. All others are hidden.

    Args:
        verb: Verb that the options belong to.
        function: Function of that verb.
    """

    def __init__(self, verb: str, function: Callable):
        hints = get_type_hints(function)
        dataclasses = [hints[name] for name in hints if name != "return"]
        self.positional: tuple[str, ...] = getattr(dataclasses[0], "_positional", ())
        self.list_defaults: Callable[[Namespace], dict] = getattr(dataclasses[0], "_defaults", lambda _: {})
        names = "".join(f" {name.upper()}" for name in self.positional)
        super().__init__(
            dataclasses,
            prog=f"geoalign-hf {verb}",
            usage=f"geoalign-hf {verb}{names} [OPTIONS]",
            description=function.__doc__,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            conflict_handler="resolve",
        )
        # TrainingArguments has a --debug, too, for overflows of mixed precision. Ours takes its place.
        help_text = "Traceback of an error, instead of one line."
        self.add_argument("--debug", action="store_true", dest="traceback", help=help_text)
        self.set_defaults(debug="")
        self._negative_number_matcher = NEGATIVE_NUMBERS
        for action in self._actions:
            if get_origin(action.type) is tuple:
                action.type = partial(parse_numbers, kind=get_args(action.type)[0])
        self._describe_inherited(dataclasses)
        self._describe_opposites()
        self.set_defaults(**self.list_defaults(Namespace(**{a.dest: a.default for a in self._actions})))

    def _describe_inherited(self, dataclasses: list[type]) -> None:
        shown, texts = {"help", "traceback"}, getattr(dataclasses[0], "_also_shown", {})
        bases = [base for dataclass in dataclasses for base in dataclass.__mro__]
        for base in bases:
            if base.__module__.startswith(f"{__package__}."):
                shown.update(base.__dict__.get("__annotations__", {}))
        for action in self._actions:
            action.help = texts.get(action.dest, action.help if action.dest in shown else None) or SUPPRESS
            if action.help == SUPPRESS:
                self.epilog = "All other options of transformers.TrainingArguments are accepted as well."

    def _describe_opposites(self) -> None:
        """Describe each `--no_x` as the absence of what `--x` does."""
        for action in self._actions:
            name = action.option_strings[0].removeprefix("--no_")
            if action.option_strings[0] != f"--{name}" and action.dest == name and action.help != SUPPRESS:
                what = str(action.help).split(". ")[0].rstrip(".")
                action.help = f"No {what[0].lower()}{what[1:]}."

    def parse(self, words: list[str]) -> list:
        """Parse the words of a command line into one object per dataclass.

        Raises:
            ValueError: If an option is unknown, lacks its value or has a wrong one.
        """
        num_positional = 0
        while num_positional < min(len(self.positional), len(words)):
            if words[num_positional].startswith("-"):
                break
            num_positional += 1
        pairs = zip(self.positional, words[:num_positional], strict=False)
        named = [word for name, value in pairs for word in (f"--{name}", value)]
        words = [*named, *words[num_positional:]]
        self.set_defaults(**self.list_defaults(self.parse_known_args(words)[0]))
        parsed, rest = self.parse_dataclasses(words)
        if rest:
            known = [name for action in self._actions for name in action.option_strings]
            close = get_close_matches(rest[0], known, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"See {self.prog} --help."
            raise ValueError(f"{rest[0]} is not an option of this verb. {hint}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Report what argparse refuses as other errors are reported."""
        raise ValueError(f"{message}. See {self.prog} --help.")


def parse_numbers(text: str, kind: type) -> tuple:
    """Parse numbers with commas between them, the value of an option whose type is a tuple.

    Raises:
        ArgumentTypeError: If a number cannot be read.
    """
    try:
        return tuple(kind(number) for number in text.split(","))
    except ValueError as error:
        kinds = "whole numbers" if kind is int else "numbers"
        raise ArgumentTypeError(f"{text!r} must be {kinds} with commas between them") from error


def run(verb: str, words: list[str]) -> int:
    """Run a verb, and print the path of what it wrote.

    Args:
        verb: One of `geoalign_hf_cli.VERBS`.
        words: Options of the verb, as given on the command line.

    Returns:
        The exit code: 0, 2 for an error of the user, or 130 after Ctrl-C.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger(__package__).setLevel(logging.INFO)
    try:
        function = find_function(verb)
        written = function(*OptionParser(verb, function).parse(words))
        if written is not None:
            print(f"wrote {written}")
        return 0
    except KeyboardInterrupt:
        print(f"geoalign-hf {verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "--debug" in words or not is_user_error(error):
            raise
        print(f"geoalign-hf {verb}: error: {describe_error(error)}", file=sys.stderr)
        return 2


def find_function(verb: str) -> Callable:
    """Import the function of a verb, and nothing that other verbs need."""
    name = verb.replace("-", "_")
    module = import_module(f".commands.{name.split()[0]}", __package__)
    return getattr(module, name.replace(" ", "_"))


def is_user_error(error: Exception) -> bool:
    """Return whether an error is one that the user can correct.

    These are wrong values, missing files and packages, and what the package itself reports of the machine.
    Everything else is an error of the program, whose traceback belongs in a bug report.
    """
    if isinstance(error, RuntimeError):
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        return traceback is not None and PACKAGE in Path(traceback.tb_frame.f_code.co_filename).parents
    return isinstance(error, (ValueError, OSError)) or find_extra(error) is not None


def find_extra(error: Exception) -> str | None:
    """Return the extra of `geoalign_hf` that installs the package whose absence raised an error."""
    return EXTRAS.get(error.name or "") if isinstance(error, ModuleNotFoundError) else None


def describe_error(error: Exception) -> str:
    """Write the message of an error on one line."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if extra := find_extra(error):
        return f"{error}. Install it: pip install 'geoalign_hf[{extra}]'"
    return " ".join(str(error).split()) or type(error).__name__


def describe_versions() -> str:
    """Write the versions that a bug report needs."""
    versions = f"torch {version('torch')}, transformers {version('transformers')}"
    return f"geoalign-hf {__version__} ({versions}, Python {platform.python_version()})"
