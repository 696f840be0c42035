"""`geoalign-hf push`."""

from dataclasses import asdict
from typing import Any

from ..hub.push import PushConfig
from ..hub.push import push as push_folder
from ..hub.spaces import push_space


def push(config: PushConfig) -> None:
    """Push a model, an adapter or a dataset to the Hub in one commit. With --space, also push a demo page."""
    private = config.private or None
    options: dict[str, Any] = asdict(config) | {"private": private}
    folder, repo_id, space = (options.pop(name) for name in ("folder", "repo_id", "space"))
    commit = push_folder(folder, repo_id, **options)
    print(f"{folder}: pushed to {commit.pr_url or commit.commit_url}")
    if space:
        page = push_space(space, commit.repo_url.repo_id, private=private)
        print(f"{space}: the page is at {page.repo_url}")
