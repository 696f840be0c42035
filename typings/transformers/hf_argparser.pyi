# Types for pyright. HfArg returns a dataclass field, whose value has the type that the field declares.
from argparse import ArgumentParser
from typing import Any

def HfArg(**kwargs: Any) -> Any: ...

class HfArgumentParser(ArgumentParser):
    def __init__(self, dataclass_types: Any = ..., **kwargs: Any) -> None: ...
    def parse_args_into_dataclasses(
        self,
        args: list[str] | None = ...,
        return_remaining_strings: bool = ...,
        look_for_args_file: bool = ...,
    ) -> tuple[Any, ...]: ...
