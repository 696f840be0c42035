"""What pyright says of the public names and of the package."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import geoalign_hf

ROOT = Path(__file__).parents[1]
USAGE = Path(__file__).with_name("typed_usage.py")
CEILING = 167  # errors in the package; most are attributes that transformers does not type. Only lower it.


def count_errors(*paths: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "pyright", "--outputjson", *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    report = json.loads(result.stdout)
    errors = [entry for entry in report["generalDiagnostics"] if entry["severity"] == "error"]
    lines = [f"{e['file']}:{e['range']['start']['line'] + 1}: {e['message']}" for e in errors]
    return len(errors), "\n".join(lines)


def test_the_typed_script_uses_every_public_name():
    names = {node.id for node in ast.walk(ast.parse(USAGE.read_text())) if isinstance(node, ast.Name)}
    assert set(geoalign_hf.__all__) - names == set()


@pytest.mark.slow
def test_pyright_finds_no_error_where_every_public_name_is_used():
    number, lines = count_errors(USAGE)
    assert number == 0, lines


@pytest.mark.slow
def test_pyright_finds_no_more_errors_in_the_package_than_before():
    number, lines = count_errors()
    assert number <= CEILING, lines
