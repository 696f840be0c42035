"""`geoalign-hf push`."""

from dataclasses import dataclass

from transformers.hf_argparser import HfArg

from ..hub import push as hub


@dataclass
class PushOptions:
    """What is pushed, and to which repository."""

    _positional = ("folder", "repo_id")

    folder: str = HfArg(help="Folder of a model, an adapter or a dataset.")
    repo_id: str = HfArg(
        help="Repository on the Hub, as name or owner/name. It is created if it does not exist."
    )
    private: bool = HfArg(default=False, help="Visibility of a new repository: only its owner can see it.")
    revision: str | None = HfArg(default=None, help="Branch to push to. It is created if it does not exist.")
    tag: str | None = HfArg(default=None, help="Tag for the new commit, such as v1.")
    create_pr: bool = HfArg(default=False, help="Pull request instead of a commit to the branch.")
    commit_message: str | None = HfArg(default=None, help="Message of the commit.")
    base_model: str | None = HfArg(
        default=None, help="Repository of the base of an adapter that was trained on a local folder."
    )


def push(options: PushOptions) -> None:
    """Push a model, an adapter or a dataset to the Hub, in one commit."""
    commit = hub.push(
        options.folder,
        options.repo_id,
        private=options.private or None,
        revision=options.revision,
        tag=options.tag,
        create_pr=options.create_pr,
        commit_message=options.commit_message,
        base_model=options.base_model,
    )
    print(f"pushed {commit.pr_url or commit.commit_url}")
