"""The digits in PyTorch Lightning, resumed as its documentation says.

Resuming: one `ModelCheckpoint(save_last=True)` writes the latest state every `--every-n-train-steps` (0: after every epoch) and,
by `save_on_exception`, when SIGTERM arrives; another keeps the best epoch. `fit(ckpt_path="last")` restores weights, optimizer,
scheduler, loop counters and the callbacks' states, `EarlyStopping` among them, and begins anew where there is no checkpoint.
`seed_everything` comes first in every process; no generator's state is in the checkpoint.
"""

import argparse
import json
from pathlib import Path

import lightning
import torch
from digits import (
    BATCH_SIZE,
    LR,
    MAX_GRAD_NORM,
    MOMENTUM,
    NUM_EPOCHS,
    PATIENCE,
    SEED,
    Network,
    count_batches,
    digest_weights,
    load_rows,
    lr_factor,
    report_epoch,
    report_start,
)
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

VAL_BATCH_SIZE = 8192


class Digits(lightning.LightningModule):
    """The network and how it learns."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.network = Network()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        return functional.cross_entropy(self.network(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log the loss that the callbacks watch."""
        x, y = batch
        self.log("val_loss", functional.cross_entropy(self.network(x), y))

    def configure_optimizers(self) -> dict:
        """SGD, with a learning rate for every step."""
        optimizer = torch.optim.SGD(self.parameters(), lr=LR, momentum=MOMENTUM)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, self.num_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Say so."""
        report_start()

    def on_train_epoch_end(self) -> None:
        """Say so."""
        report_epoch(self.current_epoch + 1, float(self.trainer.callback_metrics["val_loss"]))


def main() -> None:
    """Train, or go on training, and print the digest of the best epoch's weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every-n-train-steps", type=int, default=0)
    given = parser.parse_args()

    lightning.seed_everything(SEED)
    train, val = load_rows(given.rows, "train"), load_rows(given.rows, "val")
    model = Digits(count_batches(train) * NUM_EPOCHS)
    often = {"every_n_train_steps": given.every_n_train_steps} if given.every_n_train_steps else {"every_n_epochs": 1}
    best = ModelCheckpoint(given.folder, "best", monitor="val_loss")
    latest = ModelCheckpoint(given.folder, "latest", save_last=True, save_on_exception=True, **often)
    trainer = lightning.Trainer(
        accelerator="cpu",
        deterministic=True,
        max_epochs=NUM_EPOCHS,
        gradient_clip_val=MAX_GRAD_NORM,
        callbacks=[EarlyStopping("val_loss", patience=PATIENCE), best, latest],
        default_root_dir=given.folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    train_loader = DataLoader(train, BATCH_SIZE, shuffle=True)
    trainer.fit(model, train_loader, DataLoader(val, VAL_BATCH_SIZE), ckpt_path="last")
    model.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    print(json.dumps({"weights_digest": digest_weights(model)}))


if __name__ == "__main__":
    main()
