"""A Trainer whose checkpoints are complete or absent, and whose resumed runs equal uninterrupted ones.

A run writes into its folder: `final/` and `best/`, models that load by `from_pretrained` and can be pushed as
they are; `checkpoint-*/`, from which a run resumes; `args.json`, `metrics.json`, `trainer_state.json` and
`curves.png`.
"""

from contextlib import ExitStack, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import HubStrategy, TrainOutput
from transformers.utils import logging

from ..hub.cards import has_protocol, write_card
from ..hub.push import BackgroundPush
from ..storage import lock_folder, write_json
from .arguments import GeoAlignTrainingArguments
from .average import WeightAverage
from .callbacks import FollowWeights, SaveFlow
from .checkpoints import (
    STATE,
    check_writable,
    list_checkpoints,
    load_tree,
    prepare_output,
    read_weights,
    remove_folder,
    resolve_checkpoint,
    set_random_state,
    write_folder,
)
from .curves import draw_curves
from .launch import call_on_main, check_backend, collect_weights, copy_weights
from .state import restore_state, write_state
from .teacher import Teacher

logger = logging.get_logger(__name__)
EMBEDDING_METHODS = ("embed_images", "embed_regions", "embed_text", "embed_concepts", "get_patch_features")


class ResumableTrainer(Trainer):
    """A Trainer that saves, resumes and stops safely. `GeoAlignTrainer` adds data, loss and evaluation.

    Attributes:
        settings: what `args.json` and the cards show.
        scores: results of the evaluators at the `start`, at the `best` and at the `final` evaluation, by the
            name of the evaluator.
        teacher: embeds crops, and follows the model.
        average: moving average of the weights, or None.
    """

    args: GeoAlignTrainingArguments
    model: Any  # a GeoAlignCLIPModel, alone or in the wrappers of PEFT, DDP or FSDP
    processing_class: Any  # a GeoAlignCLIPProcessor or the processor of another CLIP
    settings: dict
    teacher: Teacher

    def __init__(self, model, training_args, *, callbacks: list | None = None, **kwargs):
        self.scores: dict[str, dict[str, dict]] = {}
        self.average: WeightAverage | None = None
        self._flow = SaveFlow()
        check_writable(training_args.output_dir)
        super().__init__(
            model, training_args, callbacks=[*(callbacks or ()), FollowWeights(self), self._flow], **kwargs
        )
        del self.model.config.use_cache  # Trainer sets it, and it would be saved with the model

    def create_accelerator_and_postprocess(self) -> None:
        """Also refuse backends of Accelerate that this trainer cannot use."""
        super().create_accelerator_and_postprocess()
        check_backend(self.accelerator, bool(self.args.fsdp))

    def describe_run(self) -> dict:
        """Return what must be equal when the run is resumed."""
        raise NotImplementedError

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial=None, ignore_keys_for_eval=None
    ) -> TrainOutput:
        """Train, and write the trained model to `final/`.

        Args:
            resume_from_checkpoint: checkpoint folder; True or `last` for the newest one in `output_dir`. None
                takes `args.resume_from_checkpoint`.
            trial: trial of a hyperparameter search, as for Trainer.
            ignore_keys_for_eval: names of outputs that an evaluation ignores, as for Trainer.

        Returns:
            As Trainer does.

        Raises:
            ValueError: if the checkpoint is damaged or of another run, or the loss is not finite.
            RuntimeError: if `output_dir` cannot be written, is in use, or holds another run.
            SystemExit: after SIGINT or SIGTERM, when a checkpoint has been saved.
        """
        resume = (
            self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        )
        output_dir = Path(self._get_output_dir(trial))
        with ExitStack() as stack:
            checkpoint = call_on_main(self.accelerator, self._open_output, stack, output_dir, resume)
            stack.enter_context(self._flow.listening())
            if not checkpoint:
                self.scores = {}
            output = super().train(checkpoint and str(checkpoint), trial, ignore_keys_for_eval)
            if self._flow.received:
                logger.warning("The run was interrupted. Continue it with resume_from_checkpoint 'last'.")
                raise SystemExit(128 + self._flow.received)
            self._finish(output_dir)
        return output

    def _open_output(self, stack: ExitStack, output_dir: Path, resume: str | bool | None) -> Path | None:
        """Lock and prepare the folder of the run, and find the checkpoint to resume from."""
        stack.enter_context(lock_folder(output_dir))
        checkpoint = resolve_checkpoint(output_dir, resume)
        if checkpoint:
            is_resumed = checkpoint.resolve().parent == output_dir.resolve()
        else:
            is_resumed = bool(resume) and not (output_dir / "final").exists()
        start = self._unwrap().name_or_path
        prepare_output(output_dir, is_resumed, self.args.overwrite_output_dir, start)
        if checkpoint:
            logger.warning(f"Resuming from {checkpoint}.")
        elif resume:
            logger.warning(f"{output_dir} holds no checkpoint yet: starting with the first step.")
        write_json(output_dir / "args.json", self.settings)
        return checkpoint

    def _finish(self, output_dir: Path) -> None:
        """Leave the averaged or best weights in the model, and write `final/` with its metrics and card."""
        if self.average is not None:
            copy_weights(self._unwrap(), collect_weights(self.average.weights))
            self.average = None
        if self.args.load_best_model_at_end and "best" in self.scores:
            self._load_best(output_dir / "best")
        is_main = self.accelerator.is_main_process
        if is_main:
            self.state.save_to_json(str(output_dir / "trainer_state.json"))
            write_json(output_dir / "metrics.json", self._list_scores("start", "best", "final"))
            scores = [f"eval_{evaluator.name}_{evaluator.primary_metric}" for evaluator in self.evaluators]
            terms = [term.name for term in fields(self.loss_weights)]
            panels = ["loss", *terms, *scores, "grad_norm", "learning_rate", "images_per_second"]
            draw_curves(self.state.log_history, output_dir / "curves.png", panels)
        with write_folder(self.accelerator, output_dir / "final") as folder:
            if is_main:
                (folder / "curves.png").write_bytes((output_dir / "curves.png").read_bytes())
            self._write_model(folder, "start", "final")

    def _load_best(self, folder: Path) -> None:
        if isinstance(self._unwrap(), PeftModel):
            set_peft_model_state_dict(self._unwrap(), load_file(folder / "adapter_model.safetensors"))
        else:
            copy_weights(self._unwrap(), read_weights(folder))
        self.scores["final"] = self.scores["best"]

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        """Also build the average of the weights, and restore everything once the model has its wrapper."""
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if isinstance(self.model, FSDPModule):  # so that these, too, gather the sharded weights
            for name in EMBEDDING_METHODS:
                register_fsdp_forward_method(self.model, name)
        self.average = WeightAverage(self._unwrap(), self.args.ema_decay) if self.args.ema_decay else None
        if resume_from_checkpoint is not None:
            restore_state(self, Path(resume_from_checkpoint))
        return prepared

    def _run_epoch(self, **kwargs):
        """Train for an epoch, unless early stopping had already ended the run that is resumed."""
        stops = [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
        if kwargs["resume_from_checkpoint"] is not None and any(
            stop.early_stopping_patience_counter >= stop.early_stopping_patience for stop in stops
        ):
            logger.warning(f"Early stopping ended this run at step {self.state.global_step}.")
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    def _list_scores(self, *moments: str) -> dict[str, dict]:
        """List scores as `metrics.json` and cards have them, with titles such as "regions final"."""
        return {
            f"{name} {moment}": scores
            for moment in moments
            for name, scores in self.scores.get(moment, {}).items()
        }

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, its processor, the code of both and a card, as `from_pretrained` loads them."""
        self._write_model(Path(output_dir or self.args.output_dir))

    def _write_model(self, folder: Path, *moments: str) -> None:
        with self._averaged():
            # Every process takes part in gathering weights that are sharded.
            weights: dict[str, Any] = self.accelerator.get_state_dict(self.model)
            if self.accelerator.is_main_process:
                if "logit_scale" in weights:
                    weights["logit_scale"] = weights["logit_scale"].reshape(())  # see `prepare_for_fsdp`
                self._unwrap().save_pretrained(folder, state_dict=weights)
                self.processing_class.save_pretrained(folder)
                scores = self._list_scores(*moments)
                shown = {title: each for title, each in scores.items() if has_protocol(each)}
                write_card(folder, shown, self.settings | {"num_steps": self.state.max_steps})

    def _save_checkpoint(self, model, trial) -> None:
        """Save a checkpoint that is complete or absent, and remove the oldest ones."""
        output_dir = Path(self._get_output_dir(trial))
        folder = output_dir / f"checkpoint-{self.state.global_step}"
        with write_folder(self.accelerator, folder) as partial:
            self._write_model(partial)
            write_state(self, partial / STATE)
            if self.accelerator.is_main_process:
                self._export_callback_states()
                self.state.save_to_json(str(partial / "trainer_state.json"))
        if self.accelerator.is_main_process:
            limit = self.args.save_total_limit
            for old in list_checkpoints(output_dir)[:-limit] if limit else []:
                remove_folder(old)
        if self.args.push_to_hub and self.state.global_step < self.state.max_steps:  # `final/` follows
            self._push_from_checkpoint(str(folder))

    def _export_callback_states(self) -> None:
        """Copy the state of callbacks, such as early stopping, into the state of the trainer."""
        exported: dict[str, list] = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                exported.setdefault(type(callback).__name__, []).append(callback.state())
        self.state.stateful_callbacks = {
            name: states if len(states) > 1 else states[0] for name, states in exported.items()
        }

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        """Do nothing: `restore_state` loads the weights, when the model has its wrapper."""

    def _load_rng_state(self, checkpoint) -> None:
        """Restore the random generators of this process."""
        name = f"random-{self.args.process_index}.safetensors"
        set_random_state(load_tree(Path(checkpoint) / STATE / name))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository before the run starts, so that a wrong name or token is reported early."""
        if self.accelerator.is_main_process:
            args = self.args
            name = args.hub_model_id or Path(args.output_dir).resolve().name
            options = {"revision": args.hub_revision, "token": token or args.hub_token}
            self._background = BackgroundPush(name, args.hub_private_repo, **options)
            self.hub_model_id = self._background.repo_id

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint in the background, in one commit."""
        if self.accelerator.is_main_process and self.args.hub_strategy != HubStrategy.END:
            self._background.start(Path(checkpoint_folder))

    def push_to_hub(self, **kwargs) -> CommitInfo | None:
        """Push `final/` in one commit: weights, code, processor and card. The main process pushes."""
        if kwargs:
            raise ValueError(
                f"push_to_hub got {sorted(kwargs)}; set hub_* in the training arguments instead."
            )
        if self.hub_model_id is None:
            self.init_hf_repo()
        if not self.accelerator.is_main_process:
            return None
        return self._background.finish(Path(self.args.output_dir) / "final")

    def _unwrap(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def _averaged(self):
        """Return a context in which the model has the averaged weights, if there are any."""
        return nullcontext() if self.average is None else self.average.in_place()
