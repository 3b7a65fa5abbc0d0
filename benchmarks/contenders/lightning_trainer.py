"""PyTorch Lightning with `Trainer(barebones=True)`: no logger, checkpoints, progress bar, summary or validation.

With the argument `plain`, it has the `DataLoader` and the optimizer of its documentation; with `tuned`, gathered batches and fused
AdamW.
"""

import logging
from collections.abc import Callable

import lightning
import torch
from torch import Tensor
from torch.nn import functional
from torch_parts import build_loader, build_network, build_optimizer, copy_layers
from work import Array, Labels, Layers, Work, race


class Classifier(lightning.LightningModule):
    """The network and how it learns."""

    def __init__(self, work: Work, lap: Callable[[], None], is_tuned: bool) -> None:
        super().__init__()
        self.is_tuned = is_tuned
        self.work = work
        self.lap = lap
        self.network = build_network(work)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of a batch."""
        inputs, classes = batch
        return functional.cross_entropy(self.network(inputs), classes)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of the work."""
        return build_optimizer(self.work, self, fused=self.is_tuned)

    def on_train_start(self) -> None:
        """Begin the first lap."""
        self.lap()

    def on_train_epoch_end(self) -> None:
        """End a lap."""
        self.lap()


def train(
    work: Work, x: Array, y: Labels, seed: int, num_epochs: int, lap: Callable[[], None], variant: str, accelerator: str = "cpu"
) -> Layers:
    """Fit once, for all epochs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(seed)
    model = Classifier(work, lap, variant == "tuned")
    trainer = lightning.Trainer(accelerator=accelerator, devices=1, max_epochs=num_epochs, barebones=True)
    trainer.fit(model, build_loader(torch.from_numpy(x), torch.from_numpy(y), work.batch_size, model.is_tuned))
    return copy_layers(model.cpu())


if __name__ == "__main__":
    race(train)
