"""Faster steps: gradients and updates in fewer calls with the same bits, or compiled code with several steps per call."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

from torch import Tensor

from refit.data.loaders import ShuffledLoader
from refit.engine.backpropagation import backpropagate_all, build_backpropagation
from refit.engine.captured_steps import find_captured, may_capture
from refit.engine.compilation import Program, can_compile, compile_steps, count_steps_a_call, count_steps_before
from refit.engine.optimizer_updates import build_update
from refit.training.steps import Batch, Steps, Taken, compute_gradients

CALLS_A_GATHER = 8
"""Calls of several compiled steps whose rows are gathered at once: small gathers take 60 ns a row, where large ones take 20."""
ALIGNMENT = 256
"""In bytes. By alignment up to this, cuBLAS chooses between products whose last bits differ. A GPU aligns each tensor so."""


def align(rows: Tensor) -> Tensor:
    """Rows that begin at a multiple of `ALIGNMENT`, a copy if others lie before them in their memory and they do not."""
    return rows.clone() if rows.storage_offset() * rows.element_size() % ALIGNMENT else rows


class FastSteps(Steps):
    """`eager` gives the bits of the reference; `compiled` and `auto` those of the same operations, fused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._tensors = cast(ShuffledLoader, self.loader)  # of items that are read one by one, the reference takes the steps
        self._parameters = list(self.model.parameters())
        rows_a_step = self.accumulate_batches * self.batch_size
        self._num_steps_before = count_steps_before(self.engine, self._parameters, rows_a_step)
        self._num_steps_a_call = count_steps_a_call(self._parameters, rows_a_step, self.num_batches // self.accumulate_batches)
        self._num_batches_a_call = self._num_steps_a_call * self.accumulate_batches
        self._update = build_update(self.optimizer, may_rearrange=self.engine == "eager")
        num_rows = len(self.order)
        sizes = {min(self.batch_size, num_rows), num_rows % self.batch_size or self.batch_size}
        self._backpropagate = build_backpropagation(self.model, sizes, self.arithmetic)
        where = self.arithmetic["objective"], self.arithmetic["device"]
        self._may_capture = self.engine != "compiled" and may_capture(self.model, self.optimizer, *where)
        self._rows: Iterator[Batch] | None = None
        self._program: Program | None = None

    def compute_gradients(self, batches: Sequence[Batch]) -> tuple[list[Tensor], Tensor | None]:
        """Compute gradients without autograd where that gives its bits."""
        if self._backpropagate is None:
            return compute_gradients(self.model, self._parameters, batches, **self.arithmetic)
        return backpropagate_all(self._backpropagate, self._parameters, batches, self.arithmetic["max_grad_norm"])

    def update(self) -> None:
        """Change the parameters in fewer calls, where the optimizer is known."""
        if self._update is None:
            super().update()
        else:
            self._update(self.lr)

    def take(self, num_done: int, step: int) -> Taken:
        """Take the next step, or as many as a compiled call takes; the epoch's last is never compiled, as its gradient is logged.

        Args:
            num_done: Batches of the epoch before it.
            step: Its number, counted from 0 over the whole run.

        Raises:
            TrainingError: The model cannot train on a last batch of one row.
            SettingsError: The model or the optimizer cannot be compiled.
        """
        # The step at which a call begins must not depend on pauses. The last batch, which may be short, is in no call.
        is_call = num_done % self._num_batches_a_call == 0 and num_done + self._num_batches_a_call < self.num_batches
        if is_call and step >= self._num_steps_before and can_compile(self.engine, self.optimizer):
            taken = self._take_compiled(num_done, step)
            if taken is not None:
                return taken
        if is_call and self._may_capture:
            taken = self._take_captured(num_done, step)
            if taken is not None:
                return taken
        return super().take(num_done, step)

    def _take_captured(self, num_done: int, step: int) -> Taken | None:
        """Take a call of plain steps that a GPU has recorded; return None where they cannot be, or the learning rate changes."""
        lrs = {self.learning_rate(step + number) for number in range(self._num_steps_a_call)}
        if len(lrs) > 1 or not (self.optimizer.state or self.optimizer.param_groups[0]["momentum"] == 0):
            return None
        (self.lr,), first = lrs, num_done * self.batch_size
        x, y = self._tensors.gather(self.order[first : first + self._num_batches_a_call * self.batch_size])
        sizes = self._num_batches_a_call, self.batch_size, self.accumulate_batches
        program = find_captured(self.model, self.optimizer, f"{self.lr} {sizes} {self.arithmetic}", self._take_plain, [x, y])
        return None if program is None else Taken(program([x, y]), self._num_batches_a_call, self._num_steps_a_call)

    def _take_plain(self, tensors: list[Tensor]) -> list[Tensor]:
        """Take the steps of a call one by one, at the rate `lr`, each on rows that are aligned as those of a step alone."""
        x, y = (rows.split(self.batch_size) for rows in tensors[-2:])
        batches, losses = list(zip([align(rows) for rows in x], y, strict=True)), list[Tensor]()
        for first in range(0, len(batches), self.accumulate_batches):
            losses += self.compute_gradients(batches[first : first + self.accumulate_batches])[0]
            self.update()
        return losses

    def _take_compiled(self, num_done: int, step: int) -> Taken | None:
        """Take a call of compiled steps; return None if `auto` goes on without compiling."""
        lrs = [self.learning_rate(step + number) for number in range(self._num_steps_a_call)]
        if self._rows is None:
            group_size, num_groups = self._num_batches_a_call * self.batch_size, CALLS_A_GATHER if self._num_steps_a_call > 1 else 1
            self._rows = self._tensors.gather_groups(self.order[num_done * self.batch_size :], group_size, num_groups)
        rows = next(self._rows)
        if self._program is None:
            started = time.perf_counter()
            compute = partial(compute_gradients, **self.arithmetic)
            self._program = compile_steps(
                self.engine, self.model, self.optimizer, rows, len(lrs), self.batch_size, compute, self.report
            )
            self._update = build_update(self.optimizer, may_rearrange=False)  # its state may lie elsewhere now
            self.compile_seconds += time.perf_counter() - started
            if self._program is None:
                return None
        self.lr = lrs[-1]
        return Taken(self._program(rows, lrs), self._num_batches_a_call, len(lrs))
