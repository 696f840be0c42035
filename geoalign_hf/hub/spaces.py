"""Pushes a Space: a page on which people try a model."""

import json
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

from .push import explain_errors, prepare_repository

FOLDER = Path(__file__).parent / "space"


def push_space(
    repo_id: str, model: str, *, private: bool | None = None, token: str | None = None
) -> CommitInfo:
    """Push the page of `space/app.py` for a model, in one commit.

    The Space of a private model needs a secret HF_TOKEN that may read it. Set it in the Space's settings.

    Args:
        repo_id: Name of the Space, or owner/name. It is created if it does not exist.
        model: Repository of the model.
        private: Whether only the owner sees a new Space. None leaves that to the owner's settings.
        token: Token of the Hub. The default is that of `hf auth login` or HF_TOKEN.

    Returns:
        The commit.

    Raises:
        ValueError: If the Space is public although `private` is set.
        RuntimeError: If there is no token, the token may not write, or the network fails.
    """
    api = HfApi(token=token)
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    with explain_errors(repo_id, token):
        space = prepare_repository(api, repo_id, "space", private)
        contents = {
            "README.md": card.format(title=space.split("/")[-1], model=model).encode(),
            "settings.json": json.dumps({"model": model}, indent=2).encode(),
            **{name: FOLDER / name for name in ("app.py", "requirements.txt", "sample.png")},
        }
        return api.create_commit(
            space,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=f"Page for {model}",
            repo_type="space",
        )
