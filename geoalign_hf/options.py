"""Fields of dataclasses that are options of the command line, and a parser of them.

The parser takes the same words as `transformers.HfArgumentParser`, whose import takes seconds.
"""

import dataclasses
from argparse import ArgumentParser, ArgumentTypeError, _ArgumentGroup
from collections.abc import Iterable
from enum import Enum
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

MISSING = dataclasses.MISSING
WORDS = dict.fromkeys(("yes", "true", "t", "y", "1"), True) | dict.fromkeys(
    ("no", "false", "f", "n", "0"), False
)


def option(
    *, help: str, default: Any = MISSING, default_factory: Any = MISSING, choices: Iterable[str] | None = None
) -> Any:
    """Make a field of a dataclass with the help text of its option and, if they are limited, its values."""
    metadata = {"help": help} | ({"choices": list(choices)} if choices else {})
    return dataclasses.field(default=default, default_factory=default_factory, metadata=metadata)


class DataclassParser(ArgumentParser):
    """A parser whose options are the fields of dataclasses.

    Args:
        dataclass_types: The dataclasses.
        **settings: Arguments of `ArgumentParser`.
    """

    def __init__(self, dataclass_types: list[type], **settings):
        super().__init__(**settings)
        self.dataclass_types = dataclass_types
        for one in dataclass_types:
            title = getattr(one, "_argument_group_name", None)
            group = self.add_argument_group(title) if title else self
            hints = get_type_hints(one)
            for field in dataclasses.fields(one):
                if field.init:
                    _add_option(group, field, hints[field.name])

    def parse_dataclasses(self, words: list[str]) -> tuple[list, list[str]]:
        """Parse words into one object per dataclass.

        Returns:
            The objects, and the words that are no options.
        """
        found, rest = self.parse_known_args(words)
        names = [
            [field.name for field in dataclasses.fields(one) if field.init] for one in self.dataclass_types
        ]
        pairs = zip(self.dataclass_types, names, strict=True)
        return [one(**{name: getattr(found, name) for name in of_one}) for one, of_one in pairs], rest


def _add_option(group: ArgumentParser | _ArgumentGroup, field: dataclasses.Field, hint: Any) -> None:
    """Add the option of a field and, if it is True by default, its opposite."""
    kind, settings = _find_kind(hint), dict(field.metadata)
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if default is MISSING and kind is not bool:
        settings["required"] = True
    elif kind is not bool or default is not None:
        settings["default"] = False if default is MISSING else default
    names = list(dict.fromkeys((f"--{field.name}", f"--{field.name.replace('_', '-')}")))
    if kind is bool:
        flag = {} if default is None else {"nargs": "?", "const": True}
        group.add_argument(*names, **settings, **flag, type=_parse_bool)
        if default is True:
            names = [f"--no_{field.name}", f"--no-{field.name.replace('_', '-')}"]
            settings["default"] = False
            group.add_argument(*dict.fromkeys(names), **settings, action="store_false", dest=field.name)
    elif get_origin(kind) is Literal or (isinstance(kind, type) and issubclass(kind, Enum)):
        is_enum = isinstance(kind, type)
        choices = [one.value for one in kind] if is_enum else get_args(kind)
        by_word = {str(choice): choice for choice in choices}
        group.add_argument(*names, **settings, choices=choices, type=lambda word: by_word.get(word, word))
    elif get_origin(kind) is list:
        if isinstance(default, str):  # argparse would parse it as an entry of the list
            del settings["default"]
        group.add_argument(*names, **settings, type=get_args(kind)[0], nargs="+")
    else:
        group.add_argument(*names, **settings, type=kind)


def _find_kind(hint: Any) -> Any:
    """Return the type that the words of an option have. Of "text or something else" it is the latter."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if str in kinds and len(kinds) == len(get_args(hint)):
        kinds.remove(str)
    return str if str in kinds else kinds[0]


def _parse_bool(word: str) -> bool:
    if word.lower() not in WORDS:
        raise ArgumentTypeError(f"expected one of {', '.join(WORDS)}, but got {word!r}")
    return WORDS[word.lower()]
