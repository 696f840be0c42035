"""Pushes the folder of a model, an adapter or a dataset to the Hugging Face Hub, in one commit.

    geoalign-hf push outputs/harbors/final you/harbors

The commit holds weights, code, processor, metrics and card. `from_pretrained`, `pipeline` and `load_dataset`
load it by the name of the repository.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_token,
    is_offline_mode,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from ..options import option
from ..storage import list_weight_files, lock_folder, read_json, read_text
from .cards import UNNAMED, UNNAMED_BASE, has_protocol, make_card

logger = logging.get_logger(__name__)
# The base class of error responses and lost connections: httpx.HTTPError, or httpx2.HTTPError in hub 2.
HTTPError = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
# The file or folder by which each kind of folder is recognised, and the files that it must have.
MARKERS = {"adapter": "adapter_config.json", "model": "config.json", "dataset": "data"}
REQUIRED = {
    "model": ("config.json", "processor_config.json", "tokenizer.json"),
    "adapter": ("adapter_config.json", "adapter_model.safetensors"),
    "dataset": ("README.md",),
}
HANDLER = Path(__file__).parent / "endpoint" / "handler.py"
PLACEHOLDER = "[More Information Needed]"  # in the cards of PEFT and transformers
# Files of an older push that would be mistaken for a part of the new one.
REPLACED = r"(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|data/[^/]+\.parquet"


@dataclass(frozen=True)
class PushConfig:
    """What to push, and where."""

    _positional = ("folder", "repo_id")

    folder: str = option(help="Folder of a model, an adapter or built rows.")
    repo_id: str = option(help="Name of the repository, with or without its owner. It is created if needed.")
    private: bool = option(default=False, help="Privacy of a new repository. Only its owner sees it.")
    revision: str | None = option(default=None, help="Branch to push to. It is created if needed.")
    tag: str | None = option(default=None, help="Tag for the new commit.")
    create_pr: bool = option(default=False, help="Pull request instead of a direct commit.")
    commit_message: str | None = option(default=None, help="Message of the commit.")
    base_model: str | None = option(
        default=None, help="Repository of an adapter's base model, if it was trained on a local folder."
    )
    handler: bool = option(default=False, help="Code for Inference Endpoints (handler.py) beside the model.")
    space: str | None = option(
        default=None, help="Name of a Space to create or update: a page on which people try the model."
    )


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    base_model: str | None = None,
    handler: bool = False,
    token: str | None = None,
) -> CommitInfo:
    """Push a folder in one commit. Large files are uploaded first; files that the Hub has are not sent again.

    Args:
        folder: A saved model with its processor, an adapter, or built rows. Hidden files and subfolders of a
            model, such as the state of a checkpoint, are not pushed. A folder without a card gets one. Other
            files of the repository are kept, except weights or rows of an older push.
        repo_id: Name of the repository, or owner/name. It is created if it does not exist.
        private: Whether only the owner sees a new repository. None leaves that to the owner's settings.
        revision: Branch, created if it does not exist. The default is main.
        tag: Tag for the new commit.
        create_pr: Whether to open a pull request instead of a commit on the branch.
        commit_message: Message of the commit. The default is "Push" and the folder's name.
        base_model: Repository of an adapter's base model, if the adapter was trained on a local folder.
        handler: Whether to add `handler.py`, with which Inference Endpoints classify regions over HTTP.
        token: Token of the Hub. The default is that of `hf auth login` or HF_TOKEN.

    Returns:
        The commit. Others can pin its `oid` as `revision`.

    Raises:
        ValueError: If a name is malformed, the folder is incomplete, the tag exists, `revision` is not a
            branch, or the base model is a local folder. A repository is refused if it is public although
            `private` is set, or if it holds a model instead of an adapter or the reverse. Nothing was sent.
        RuntimeError: If there is no token, the token may not write, the network fails, or another process is
            writing into the folder. The repository shows the complete push or nothing of it.
    """
    if create_pr and tag:
        raise ValueError(
            f"a pull request cannot be tagged. Merge it first, then create tag {tag!r} on the merge."
        )
    for argument, name in (("tag", tag), ("revision", revision)):
        if name is not None and not re.fullmatch(r"\w[\w.+/-]*", name):
            raise ValueError(f"{argument} is {name!r}. Use letters, digits and any of . _ + / - only.")
    folder = Path(folder)
    kind = check_folder(folder)
    repo_type = "dataset" if kind == "dataset" else "model"
    contents = read_contents(folder, kind, base_model)
    if handler:
        if kind == "dataset":
            raise ValueError(f"handler is set, but {folder} holds rows. Only a model has a handler; omit it.")
        contents["handler.py"] = HANDLER
    api = HfApi(token=token)
    with lock_folder(folder), explain_errors(repo_id, token):
        url = prepare_repository(api, repo_id, repo_type, private)
        contents["README.md"] = contents["README.md"].replace(UNNAMED.encode(), url.encode())
        _prepare_revision(api, url, repo_type, revision, tag)
        parent = api.repo_info(url, repo_type=repo_type, revision=revision)
        present = [sibling.rfilename for sibling in parent.siblings or ()]
        other = {"model": "adapter", "adapter": "model"}.get(kind)
        if other and MARKERS[other] in present and MARKERS[kind] not in present:
            raise ValueError(f"{url} holds a {other}, but {folder} is a {kind}. Give another name.")
        stale = [name for name in present if re.fullmatch(REPLACED, name) and name not in contents]
        commit = api.create_commit(
            url,
            [CommitOperationAdd(name, content) for name, content in contents.items()]
            + [CommitOperationDelete(name) for name in stale],
            commit_message=commit_message or f"Push {folder.resolve().name}",
            repo_type=repo_type,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent.sha,
        )
    if tag:
        with explain_errors(
            repo_id, token, f"commit {commit.oid} was pushed, but tag {tag!r} was not created"
        ):
            api.create_tag(url, tag=tag, revision=commit.oid, repo_type=repo_type)
    return commit


def _prepare_revision(
    api: HfApi, repo_id: str, repo_type: str, revision: str | None, tag: str | None
) -> None:
    """Create the branch if it does not exist, and refuse a tag that exists."""
    if not revision and not tag:
        return
    tags = [ref.name for ref in api.list_repo_refs(repo_id, repo_type=repo_type).tags]
    if tag in tags:
        raise ValueError(f"{repo_id} already has the tag {tag!r}. Give another, or delete it there first.")
    if revision in tags or re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ValueError(f"revision is {revision!r}, a tag or commit. Give the name of a branch.")
    if revision and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)


def check_folder(folder: Path) -> str:
    """Check that a folder is complete.

    Returns:
        "model", "adapter" or "dataset".

    Raises:
        ValueError: If it holds none of them, or a file is missing or truncated.
    """
    kind = next((kind for kind, name in MARKERS.items() if (folder / name).exists()), None)
    if kind is None:
        raise ValueError(
            f"{folder} holds no model (config.json), no adapter (adapter_config.json) and no rows (data/). "
            "Give a folder that save_pretrained or `geoalign-hf build` has written."
        )
    needed = list(REQUIRED[kind])
    if kind == "model":
        config = read_json(folder / "config.json")
        named = [*config.get("auto_map", {}).values()]
        named += [task["impl"] for task in config.get("custom_pipelines", {}).values()]
        needed += list_code(folder, {f"{name.split('.')[0]}.py" for name in named})
        needed += [file.name for file in list_weight_files(folder, must_exist=False)]
    missing = [name for name in needed if not (folder / name).exists()]
    if kind == "dataset" and not list(folder.glob("data/*.parquet")):
        missing.append("data/*.parquet")
    if missing:
        raise ValueError(
            f"{folder} is an incomplete {kind}: {sorted(missing)} are missing. Save model and processor into "
            "it with save_pretrained, or let `geoalign-hf build` finish."
        )
    for name in filter(lambda name: name.endswith(".safetensors"), needed):
        try:
            safe_open(folder / name, "pt")  # it reads the header, which states the length of the file
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is truncated or corrupt ({error}). Save it again.") from error
    return kind


def list_code(folder: Path, names: set[str]) -> set[str]:
    """Add the sibling modules that code files import, directly or through each other, to their names."""
    texts = [(folder / name).read_text(encoding="utf-8") for name in names if (folder / name).exists()]
    found = {f"{name}.py" for text in texts for name in re.findall(r"^\s*from \.(\w+) import", text, re.M)}
    return names if found <= names else list_code(folder, names | found)


def read_contents(folder: Path, kind: str, base_model: str | None = None) -> dict[str, Path | bytes]:
    """Collect the files to push by their names in the repository: paths, or new bytes where they change.

    Raises:
        ValueError: If a text file cannot be read, or `base_model` is given for a folder that holds no
            adapter. For an adapter of a local base model, it must be given.
    """
    if base_model and kind != "adapter":
        raise ValueError(
            f"base_model is {base_model!r}, but {folder} holds a {kind}. Only an adapter has one; omit it."
        )
    paths = folder.rglob("*") if kind == "dataset" else folder.glob("*")
    names = {path.relative_to(folder).as_posix(): path for path in sorted(paths) if path.is_file()}
    contents: dict[str, Path | bytes] = {
        name: path
        for name, path in names.items()
        if not any(part.startswith(".") for part in name.split("/"))
    }
    card = read_text(folder / "README.md") if "README.md" in contents else ""
    if kind != "dataset" and (not card or PLACEHOLDER in card):
        metrics, settings = (
            read_json(folder / name) if name in contents else {} for name in ("metrics.json", "args.json")
        )
        results = {name: scores for name, scores in metrics.items() if has_protocol(scores)}
        card = str(make_card(folder, results, settings))
    if kind == "adapter":
        config = read_json(folder / "adapter_config.json")
        base = base_model or config["base_model_name_or_path"]
        if not is_repository(base):
            raise ValueError(
                f"the base model of the adapter in {folder} is {base!r}, a local folder that others do not "
                "have. Push that folder first, and give its repository as base_model."
            )
        config["base_model_name_or_path"] = base
        contents["adapter_config.json"] = json.dumps(config, indent=2).encode()
        named = ModelCard(card.replace(UNNAMED_BASE, base))
        named.data["base_model"] = base
        card = str(named)
    contents["README.md"] = card.encode()
    return contents


def is_repository(name: str) -> bool:
    """Return whether a name can be that of a repository and is not that of a local folder."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def prepare_repository(api: HfApi, repo_id: str, repo_type: str, private: bool | None) -> str:
    """Create the repository if it does not exist, and return its full name.

    Raises:
        ValueError: If it exists and is public, but `private` is set.
    """
    sdk = "gradio" if repo_type == "space" else None
    url = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)
    if private and not api.repo_info(url.repo_id, repo_type=repo_type).private:
        raise ValueError(
            f"{url.repo_id} exists and is public, but private is set. Make it private in its settings, or "
            "give another name."
        )
    return url.repo_id


@contextmanager
def explain_errors(repo_id: str, token: str | None, state: str = "the push failed") -> Iterator[None]:
    """Turn errors of the Hub and of the network into messages that say what to do.

    Raises:
        ValueError: If `repo_id` is no name of a repository.
        RuntimeError: If there is no token, or the token is malformed; and in place of the original errors.
    """
    validate_repo_id(repo_id)
    found = token or get_token()
    if not found:
        raise RuntimeError(f"pushing to {repo_id} needs a token, but none was found. Run `hf auth login`.")
    if not re.fullmatch("[!-~]+", found):  # an HTTP header could not carry it
        raise RuntimeError(
            f"pushing to {repo_id} needs a token, but the one that was found has a space, or a character "
            "that is not printable ASCII. Run `hf auth login`, or correct HF_TOKEN or the argument token."
        )
    if is_offline_mode():
        raise RuntimeError(f"pushing to {repo_id} needs the network, but HF_HUB_OFFLINE is set. Unset it.")
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:  # hf_xet raises RuntimeError
        status = getattr(getattr(error, "response", None), "status_code", 0)
        advice = {
            401: "the token is not valid. Run `hf auth login`",
            403: "the token may not write there. Give a repository of your own, or a token with write access",
            404: "the repository does not exist, or this token may not read it",
            409: "the repository was changed at the same time. Push again",
            412: "the repository was changed at the same time. Push again",
        }.get(status, "push again; files that were uploaded are not sent again")
        raise RuntimeError(f"{repo_id}: {state}; {advice} ({type(error).__name__}: {error}).") from error
    except (json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise RuntimeError(
            f"{repo_id}: {state}; {HfApi().endpoint} did not answer as a Hub does; a proxy or a login page "
            f"may have answered in its place ({type(error).__name__}: {error})."
        ) from error


class BackgroundPush:
    """Pushes folders one at a time while training goes on.

    The repository is made at once, so that a name or token that cannot be used stops a run before it starts.

    Args:
        repo_id: name, or owner/name.
        private: whether a new repository is private.
        **options: `revision` and `token`, see `push`.
    """

    def __init__(self, repo_id: str, private: bool | None = None, **options: str | None):
        self.options: dict[str, Any] = {"private": private or None, **options}
        token = options.get("token")
        with explain_errors(repo_id, token):
            self.repo_id = prepare_repository(HfApi(token=token), repo_id, "model", self.options["private"])
        self.executor = ThreadPoolExecutor(max_workers=1)
        self.under_way: Future | None = None

    def start(self, folder: Path) -> None:
        """Push a copy of a folder, unless another one is still under way."""
        if self.under_way and not self.under_way.done():
            logger.warning(f"{folder.name} is not pushed: the one before is still under way.")
            return
        copy = folder.with_name(f"partial-push-{folder.name}")  # checkpoints are dropped as others follow
        with self._going_on(copy, folder.name):
            shutil.rmtree(copy, ignore_errors=True)
            copy.mkdir()
            for path in filter(Path.is_file, folder.iterdir()):
                _link(path, copy / path.name)
            self.under_way = self.executor.submit(self._push, copy, folder.name)

    def _push(self, copy: Path, name: str) -> None:
        with self._going_on(copy, name):
            push(copy, self.repo_id, commit_message=f"Push {name}", **self.options)
            shutil.rmtree(copy)

    @contextmanager
    def _going_on(self, copy: Path, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # training is worth more than this push; the final one fails loudly
            shutil.rmtree(copy, ignore_errors=True)
            logger.warning(f"{name} was not pushed: {error}")

    def finish(self, folder: Path) -> CommitInfo:
        """Wait for the push under way, then push the final folder.

        Raises:
            RuntimeError: if that cannot be pushed; it is complete on the disk.
        """
        self.executor.shutdown()
        return push(folder, self.repo_id, **self.options)


def _link(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy)
    except OSError:  # a file system without hard links
        shutil.copy2(path, copy)
