"""Laws of pushing from a run: what is pushed when, and with which token."""

import pytest
from runs import build_trainer

OPTIONS = {"push_to_hub": True, "hub_model_id": "harbors", "hub_token": "hf_writer"}


@pytest.mark.parametrize(
    ("strategy", "pushed"), [("end", []), ("every_save", ["Push checkpoint-2"])], ids=["end", "every_save"]
)
def test_a_run_pushes_with_its_own_token(
    hub, model, processor, rows, tmp_path, monkeypatch, strategy, pushed
):
    monkeypatch.delenv("HF_TOKEN")
    trainer = build_trainer(model, processor, rows, tmp_path, hub_strategy=strategy, **OPTIONS)
    trainer.train()
    trainer.push_to_hub()
    assert hub.repositories["model", "you/harbors"].messages == ["initial commit", *pushed, "Push final"]
    assert "model.safetensors" in hub.list("you/harbors")


def test_a_wrong_token_stops_a_run_before_it_starts(hub, model, processor, rows, tmp_path):
    with pytest.raises(RuntimeError, match="may not write"):
        build_trainer(model, processor, rows, tmp_path, **OPTIONS | {"hub_token": "hf_reader"})
