"""The command `geoalign-hf`: its verbs, its help, and how it reports errors of the user."""

import dataclasses
import os
import subprocess
import sys
from argparse import SUPPRESS
from pathlib import Path
from typing import get_type_hints

import pytest

from geoalign_hf import __version__
from geoalign_hf.cli import OptionParser, describe_error, find_function, is_user_error
from geoalign_hf_cli import VERBS, main

# Words that a help text would begin with if its noun were missing.
NOT_NOUNS = {
    "a", "also", "an", "as", "at", "by", "default", "deprecated", "do", "enable", "for", "give", "how", "if",
    "in", "likewise", "make", "of", "on", "one", "only", "overrides", "push", "say", "the", "this", "to",
    "use", "what", "when", "where", "whether", "which", "who", "with", "write",
}  # fmt: skip


def list_options(verb: str) -> list:
    """The options that the help of a verb shows."""
    actions = OptionParser(verb, find_function(verb))._actions
    return [action for action in actions if action.help != SUPPRESS and action.dest != "help"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_every_verb_has_a_help_text_that_begins_with_a_noun(verb):
    texts = {}
    for action in list_options(verb):
        name = action.option_strings[0]
        assert action.help, name
        words = action.help.split()[1:] if name.startswith("--no_") else action.help.split()
        assert words[0].strip(",.:;").lower() not in NOT_NOUNS, f"{name}: {action.help}"
        assert action.help[0].isupper() and action.help.endswith("."), f"{name}: {action.help}"
        assert action.help not in texts, f"{name} and {texts[action.help]} have the same help"
        texts[action.help] = name


@pytest.mark.parametrize("verb", VERBS)
def test_an_option_that_switches_off_says_what_is_not_done(verb):
    actions = list_options(verb)
    texts = {action.option_strings[0]: action.help for action in actions}
    for action in actions:
        name = action.option_strings[0]
        if name.startswith("--no_"):
            what = texts[f"--{name.removeprefix('--no_')}"].split(". ")[0].rstrip(".")
            assert texts[name] == f"No {what[0].lower()}{what[1:]}."


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_shows_every_default(verb):
    parser = OptionParser(verb, find_function(verb))
    formatter = parser._get_formatter()
    for action in list_options(verb):
        shown = formatter._expand_help(action)
        has_default = isinstance(action.default, (int, float, list)) and action.default is not False
        if has_default and action.default != []:
            assert "(default: " in shown, shown
        assert "['" not in shown, shown  # no list as Python writes it


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_this_package_is_shown_or_has_no_help(verb):
    shown = {action.dest for action in list_options(verb)}
    for options in get_type_hints(find_function(verb)).values():
        for field in dataclasses.fields(options) if dataclasses.is_dataclass(options) else ():
            owner = next(
                base for base in options.__mro__ if field.name in base.__dict__.get("__annotations__", {})
            )
            if owner.__module__.startswith("geoalign_hf") and field.init:
                assert (field.name in shown) == ("help" in field.metadata), field.name


@pytest.mark.parametrize("verb", VERBS)
def test_no_two_dataclasses_of_a_verb_have_an_option_of_one_name(verb):
    hints = get_type_hints(find_function(verb)).values()
    names = [
        field.name for hint in hints if dataclasses.is_dataclass(hint) for field in dataclasses.fields(hint)
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_is_printed_and_says_what_the_verb_does(verb, capsys):
    with pytest.raises(SystemExit) as exit:
        main([*verb.split(), "--help"])
    printed = capsys.readouterr().out
    assert exit.value.code == 0
    assert printed.startswith(f"usage: geoalign-hf {verb}") and "--debug" in printed
    assert find_function(verb).__doc__.splitlines()[0] in printed.replace("\n", " ")


@pytest.mark.parametrize(
    ("word", "facts"),
    [("--help", [f"\n  {verb} " for verb in VERBS]), ("--version", [__version__, "torch "])],
)
def test_the_list_of_verbs_and_the_version_import_neither_torch_nor_transformers(word, facts):
    code = f"import sys, geoalign_hf_cli; code = geoalign_hf_cli.main([{word!r}]); "
    code += "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(code)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert [fact for fact in facts if fact not in result.stdout] == []


def test_a_build_by_rules_imports_neither_torch_nor_transformers(coco_folder, tmp_path):
    for name in ("torch", "transformers"):  # these stand before the real ones, also in the workers
        (tmp_path / "poison" / name).mkdir(parents=True)
        (tmp_path / "poison" / name / "__init__.py").write_text("raise SystemExit('imported')")
    root = Path(sys.modules["geoalign_hf"].__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'poison'}:{root}"}
    source = ["--coco", str(coco_folder / "rows.json"), "--output_dir", str(tmp_path / "rows")]
    for words in (["--help"], [*source, "--num_workers", "2", "--images_per_shard", "5"]):
        command = [sys.executable, "-m", "geoalign_hf_cli", "build", *words]
        result = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
        assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "rows" / "data").iterdir())) > 1


@pytest.mark.parametrize("words", [["evaluate"], ["evaluate", "--help"], []])
def test_a_verb_that_is_not_complete_lists_what_can_follow(words, capsys):
    assert main(words) == (0 if "--help" in words else 2)
    assert "evaluate scenes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["exprot"], ["exprot", "export"]),
        (["evaluate", "region"], ["evaluate region", "evaluate regions"]),
        (["push", "folder", "name", "--tga", "v1"], ["--tga", "--tag"]),
        (["push", "folder"], ["repo_id", "geoalign-hf push --help"]),
        (["push", "nowhere", "you/name"], ["nowhere"]),
        (["build", "--coco", "nowhere.json"], ["nowhere.json"]),
        (["export", "--region_form", "circles"], ["region_form", "circles", "quads"]),
        (["export"], ["outputs/train/final", "geoalign-hf train", "--model"]),
        (["evaluate", "regions"], ["outputs/rows_test", "geoalign-hf build --split test", "--dataset"]),
        (["evaluate", "regions", "--dataset", "boxes.json"], ["boxes.json", "--images"]),
        (["evaluate", "scenes"], ["--folder", "--dataset"]),
        (["check-leakage"], ["--eval_coco", "--eval_captions", "--eval_images"]),
        (["check-leakage", "--eval_images", "."], ["outputs/rows", "geoalign-hf build", "--dataset"]),
        (["search"], ["--image"]),
    ],
)  # fmt: skip
def test_a_mistake_of_the_user_is_one_line_and_exit_code_2(words, facts, geoalign_refuses):
    line = geoalign_refuses(*words)
    for fact in facts:
        assert fact in line


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="nowhere"):
        main(["push", "nowhere", "you/name", "--debug"])


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("geoalign_hf.commands.push.push_folder", lambda *words, **options: {}["missing"])
    with pytest.raises(KeyError):
        main(["push", "folder", "you/name"])


def raise_from(code: str, file: str) -> Exception:
    try:
        exec(compile(code, file, "exec"))
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_a_runtime_error_is_the_users_if_this_package_raised_it():
    inside = str(Path(sys.modules["geoalign_hf"].__file__).parent / "training" / "launch.py")
    assert is_user_error(raise_from("raise RuntimeError('no processes')", inside))
    assert not is_user_error(raise_from("raise RuntimeError('shapes differ')", "torch/nn/functional.py"))


def test_a_missing_optional_package_is_named_with_the_extra_that_installs_it():
    error = raise_from("import faiss_that_is_not_there as faiss", "search.py")
    assert not is_user_error(error)
    error.name = "faiss"
    assert is_user_error(error) and "geoalign_hf[search]" in describe_error(error)


def test_ctrl_c_ends_a_verb_with_code_130(monkeypatch, capsys):
    def interrupt(*words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("geoalign_hf.commands.push.push_folder", interrupt)
    assert main(["push", "folder", "you/name"]) == 130
    assert capsys.readouterr().err == "geoalign-hf push: interrupted\n"


def test_the_version_names_what_the_package_runs_on(capsys):
    assert main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"geoalign-hf {__version__} (torch ") and "transformers " in printed


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "geoalign_hf", "push", "nowhere", "you/name"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("geoalign-hf push: error: nowhere")
    assert "Traceback" not in result.stderr


def test_push_prints_the_address_of_the_commit(hub, folder, geoalign):
    printed = geoalign("push", folder, "you/harbors", "--private", "--tag", "v1")
    assert printed.startswith(f"{folder}: pushed to {hub.url}/you/harbors/commit/")
    assert hub.read("you/harbors", "model.safetensors") == (folder / "model.safetensors").read_bytes()
