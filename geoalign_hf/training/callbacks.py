"""Callbacks of every run: updates of the averaged weights and the teacher, and a clean stop on signals."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from ..losses.distributed import sum_over_processes

logger = logging.get_logger(__name__)


class FollowWeights(TrainerCallback):
    """Moves the average of the weights and the teacher after every optimizer step."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Follow the step that was just taken, unless fp16 overflowed and skipped it."""
        trainer = self.trainer
        if trainer.accelerator.optimizer_step_was_skipped:
            return
        if trainer.average is not None:
            trainer.average.update()
        trainer.teacher.follow(trainer.accelerator.unwrap_model(trainer.model))


class SaveFlow(TrainerCallback):
    """Saves checkpoints also on SIGINT and SIGTERM, and at the end of an epoch only after its evaluation.

    After the first signal the run stops with a checkpoint of the current step. A second signal stops it at
    once, as it would without this callback.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received: int | None = None
        self.is_postponed = self.is_stopping = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block. Only the main thread can."""
        self.received, self.is_stopping = None, False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.former = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        try:
            yield
        finally:
            self._restore()

    def _receive(self, number, frame):
        self.received = number
        self._restore()
        logger.warning(
            f"{signal.Signals(number).name} received: saving a checkpoint after this step. "
            "Send it again to stop at once."
        )

    def _restore(self) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def on_step_end(self, args, state, control, **kwargs):
        """Stop all processes after the same step if one of them got a signal.

        What is to be saved at the last step of an epoch is saved by `on_epoch_end`, after the evaluation: a
        run that is resumed from there would not evaluate again.
        """
        number = sum_over_processes(torch.tensor(float(self.received or 0), device=args.device))
        if number > 0:
            self.received, self.is_stopping = self.received or signal.SIGTERM, True
            control.should_save = control.should_training_stop = True
        self.is_postponed = control.should_save and state.epoch == int(state.epoch)
        control.should_save = control.should_save and not self.is_postponed
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        """Save what was postponed; neither save nor evaluate where the epoch was interrupted.

        A signal since the last step changes nothing here. All processes stop after their next step.
        """
        if self.is_postponed:
            control.should_save, self.is_postponed = True, False
        elif self.is_stopping:
            control.should_save = control.should_evaluate = False
        return control
