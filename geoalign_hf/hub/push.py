"""A folder of a model, an adapter or rows to a Hub repository, in one commit that is whole or not there.

What enters is what `train`, `convert`, PEFT or `build` left; what leaves is a commit with weights, code,
processor, metrics and card, which `from_pretrained`, `pipeline` and `load_dataset` read by its name.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

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

from ..storage import read_json, read_text
from .cards import UNNAMED, UNNAMED_BASE, has_protocol, make_card

logger = logging.get_logger(__name__)
# What answers of the Hub and lost connections are kinds of: httpx.HTTPError, in hub 2 httpx2.HTTPError.
HTTPError = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
# By which each kind of folder is known, and what it must have.
MARKS = {"adapter": "adapter_config.json", "model": "config.json", "dataset": "data"}
NEEDED = {
    "model": ("config.json", "processor_config.json", "tokenizer.json"),
    "adapter": ("adapter_config.json", "adapter_model.safetensors"),
    "dataset": ("README.md",),
}
PLACEHOLDER = "[More Information Needed]"  # in the cards of PEFT and transformers
# What of an older push would be taken for a part of this one.
REPLACED = r"(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|data/[^/]+\.parquet"


def _option(default, what: str):
    return field(default=default, metadata={"help": what})


@dataclass(frozen=True)
class HubConfig:
    """Where a training run is published. Its names are those of transformers' Trainer."""

    push_to_hub: bool = _option(False, "push each checkpoint in the background, and the final model")
    hub_model_id: str | None = _option(None, "repository, name or owner/name; default: name of output_dir")
    hub_private_repo: bool = _option(False, "make the repository private")
    hub_revision: str | None = _option(None, "branch to push to")


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
    token: str | None = None,
) -> CommitInfo:
    """Push a folder in one commit; large files go first, and what the Hub has is not sent again.

    Args:
        folder: a saved model with its processor, an adapter, or rows of `geoalign_hf.build`. Subfolders of a
            model (the `state` of a checkpoint) stay here. Without a README.md it gets a card. Files of the
            repository that have other names stay, but for weights or rows of an older push.
        repo_id: name, or owner/name; made if it is not there.
        private: whether only its owner sees a new repository; None leaves that to the owner's settings.
        revision: branch, made if it is not there; default: main.
        tag: a name for the new commit.
        create_pr: open a pull request instead.
        commit_message: default: "Push" and the folder's name.
        base_model: repository of what an adapter stands on, where it was trained on a local folder.
        token: default: that of `hf auth login` or HF_TOKEN.

    Returns:
        The commit; its `oid` is what others can pin as `revision`.

    Raises:
        ValueError: if the folder is not whole, the repository is public where `private` was asked for or
            holds a model where an adapter comes, the tag is taken, `revision` is no branch, or an adapter
            stands on a local folder. Nothing was sent.
        RuntimeError: if there is no token, or it may not write, or the network fails. The repository shows
            all of the push or nothing of it.
    """
    if create_pr and tag:
        raise ValueError(f"a pull request is no place for the tag {tag!r}. Merge it, then tag the merge.")
    folder = Path(folder)
    kind = check_folder(folder)
    repo_type = "dataset" if kind == "dataset" else "model"
    contents = read_contents(folder, kind, base_model)
    api = HfApi(token=token)
    with clear_errors(repo_id, token):
        url = prepare_repository(api, repo_id, repo_type, private)
        contents["README.md"] = contents["README.md"].replace(UNNAMED.encode(), url.encode())
        if revision or tag:
            refs = api.list_repo_refs(url, repo_type=repo_type)
            if tag in [ref.name for ref in refs.tags]:
                raise ValueError(f"{url} has a tag {tag!r} already. Give another, or delete it there first.")
            if revision in [ref.name for ref in refs.tags] or re.fullmatch(r"[0-9a-f]{40}", revision or ""):
                raise ValueError(f"revision is {revision!r}, a tag or commit. Give the name of a branch.")
            if revision and not revision.startswith("refs/"):
                api.create_branch(url, branch=revision, repo_type=repo_type, exist_ok=True)
        parent = api.repo_info(url, repo_type=repo_type, revision=revision)
        there = [sibling.rfilename for sibling in parent.siblings or ()]
        other = {"model": "adapter", "adapter": "model"}.get(kind)
        if other and MARKS[other] in there and MARKS[kind] not in there:
            raise ValueError(f"{url} holds a kind of {other}, not of {kind}. Give another name.")
        stale = [name for name in there if re.fullmatch(REPLACED, name) and name not in contents]
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
        with clear_errors(repo_id, token, f"the commit {commit.oid} is there, the tag {tag!r} is not"):
            api.create_tag(url, tag=tag, revision=commit.oid, repo_type=repo_type)
    return commit


def check_folder(folder: Path) -> str:
    """See that a folder is whole, and say what it holds: a model, an adapter or a dataset.

    Raises:
        ValueError: if it is none of them, or something is missing.
    """
    kind = next((kind for kind, name in MARKS.items() if (folder / name).exists()), None)
    if kind is None:
        raise ValueError(
            f"{folder} holds no model (config.json), no adapter (adapter_config.json) and no rows (data/). "
            "Give a folder that save_pretrained or geoalign_hf.build has written."
        )
    needed = list(NEEDED[kind])
    if kind == "model":
        config = read_json(folder / "config.json")
        named = [*config.get("auto_map", {}).values()]
        named += [task["impl"] for task in config.get("custom_pipelines", {}).values()]
        needed += list_code(folder, {f"{name.split('.')[0]}.py" for name in named})
        index = folder / "model.safetensors.index.json"
        shards = read_json(index)["weight_map"].values() if index.exists() else ()
        needed += set(shards) or {"model.safetensors"}
    missing = [name for name in needed if not (folder / name).exists()]
    if kind == "dataset" and not list(folder.glob("data/*.parquet")):
        missing.append("data/*.parquet")
    if missing:
        raise ValueError(
            f"{folder} is no whole {kind}: it lacks {sorted(missing)}. Save model and processor into it with "
            "save_pretrained, or let geoalign_hf.build finish."
        )
    for name in filter(lambda name: name.endswith(".safetensors"), needed):
        try:
            safe_open(folder / name, "pt")  # it reads the head, which tells how long the file must be
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is not whole ({error}). Save it again.") from error
    return kind


def list_code(folder: Path, names: set[str]) -> set[str]:
    """Add to names of code files those that they import from beside them."""
    texts = [(folder / name).read_text(encoding="utf-8") for name in names if (folder / name).exists()]
    found = {f"{name}.py" for text in texts for name in re.findall(r"^\s*from \.(\w+) import", text, re.M)}
    return names if found <= names else list_code(folder, names | found)


def read_contents(folder: Path, kind: str, base_model: str | None = None) -> dict[str, Path | bytes]:
    """Collect what is to be pushed, by its name in the repository: paths, and what had to be changed.

    Raises:
        ValueError: if an adapter stands on a local folder and no `base_model` is given, or the reverse; or if
            a text among the files cannot be read.
    """
    if base_model and kind != "adapter":
        raise ValueError(
            f"base_model is {base_model!r}, but {folder} holds a {kind}. Only adapters have one."
        )
    paths = folder.rglob("*") if kind == "dataset" else folder.glob("*")
    names = {path.relative_to(folder).as_posix(): path for path in sorted(paths) if path.is_file()}
    contents = {
        name: path
        for name, path in names.items()
        if not name.endswith(".partial") and not any(part.startswith(".") for part in name.split("/"))
    }
    card = read_text(folder / "README.md") if "README.md" in contents else ""
    if kind != "dataset" and (not card or PLACEHOLDER in card):
        metrics, settings = (
            read_json(folder / name) if name in contents else {} for name in ("metrics.json", "args.json")
        )
        told = {name: scores for name, scores in metrics.items() if has_protocol(scores)}
        card = str(make_card(folder, told, settings))
    if kind == "adapter":
        config = read_json(folder / "adapter_config.json")
        base = base_model or config["base_model_name_or_path"]
        if not is_repository(base):
            raise ValueError(
                f"the adapter in {folder} stands on {base!r}, a local folder that nobody else has. Push that "
                "first, and give its repository as base_model."
            )
        config["base_model_name_or_path"] = base
        contents["adapter_config.json"] = json.dumps(config, indent=2).encode()
        named = ModelCard(card.replace(UNNAMED_BASE, base))
        named.data.base_model = base
        card = str(named)
    return contents | {"README.md": card.encode()}


def is_repository(name: str | None) -> bool:
    """Say whether a name is one that a repository may have, and none of a folder here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def prepare_repository(api: HfApi, repo_id: str, repo_type: str, private: bool | None) -> str:
    """Make the repository, if it is not there, and give its whole name.

    Raises:
        ValueError: if it is there and public, but was to be private.
    """
    url = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    if private and not api.repo_info(url.repo_id, repo_type=repo_type).private:
        raise ValueError(
            f"{url.repo_id} is there already and public, but private was asked for. Make it private in its "
            "settings, or give another name."
        )
    return url.repo_id


@contextmanager
def clear_errors(repo_id: str, token: str | None, state: str = "the push did not end") -> Iterator[None]:
    """Say what to do where the Hub or the way to it refuses.

    Raises:
        RuntimeError: in place of the Hub's own errors.
    """
    if not re.fullmatch(r"\w+", token or get_token() or ""):
        raise RuntimeError(f"pushing to {repo_id} needs a token, and there is none. Run `hf auth login`.")
    if is_offline_mode():
        raise RuntimeError(f"pushing to {repo_id} needs the network, but HF_HUB_OFFLINE is set. Unset it.")
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:  # the last is what hf_xet raises
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = {
            401: "the token is not valid. Run `hf auth login`",
            403: "the token may not write there. Give a name of your own, or a token with the right to write",
            404: "it is not there, or this token may not see it",
            409: "it was changed at the same time. Push again",
            412: "it was changed at the same time. Push again",
        }.get(status, "push again: what is there is not sent again")
        raise RuntimeError(f"{repo_id}: {state}; {advice} ({type(error).__name__}: {error}).") from error


class BackgroundPush:
    """Pushes folders one at a time while training goes on.

    The repository is made at once, so that a name or token that cannot be used stops a run before it starts.

    Args:
        repo_id: name, or owner/name.
        config: private or not, and the branch.
    """

    def __init__(self, repo_id: str, config: HubConfig):
        self.options = {"private": config.hub_private_repo or None, "revision": config.hub_revision}
        with clear_errors(repo_id, None):
            self.repo_id = prepare_repository(HfApi(), repo_id, "model", self.options["private"])
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
            RuntimeError: if that cannot be pushed; it is whole on the disk.
        """
        self.executor.shutdown()
        return push(folder, self.repo_id, **self.options)


def _link(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy)
    except OSError:  # a file system that knows no links
        shutil.copy2(path, copy)
