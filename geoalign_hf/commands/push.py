"""`geoalign-hf push`."""

from ..hub.push import PushConfig, run_push


def push(config: PushConfig) -> None:
    """Push a model, an adapter or a dataset to the Hub, in one commit."""
    run_push(config)
