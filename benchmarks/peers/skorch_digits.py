"""The digits in skorch, resumed as its documentation says.

Resuming: one `Checkpoint(monitor=None)` writes weights, optimizer and history after every epoch (`TrainEndCheckpoint` writes the
same files, but only once training has ended, so a killed process has none of it), another keeps the best epoch, and
`LoadInitState` loads the former when training begins. What the documentation leaves to the user is done here by hand, from the
history on disk: the epochs that remain (`fit` always trains `max_epochs` more), the step at which `LRScheduler` goes on (it would
take the number of epochs for the number of batches), and what is the best epoch so far (`valid_loss_best` starts anew in each
process). `EarlyStopping` starts anew too, and there is no option against it. `torch.manual_seed` comes first in every process.
"""

import argparse
import json
from pathlib import Path

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
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, GradientNormClipping, LoadInitState, LRScheduler
from skorch.helper import predefined_split
from skorch.history import History
from torch.optim.lr_scheduler import LambdaLR

VAL_BATCH_SIZE = 8192


class Report(Callback):
    """Prints the lines that the benchmark counts."""

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Say so."""
        report_start()

    def on_epoch_end(self, net: NeuralNetClassifier, **_: object) -> None:
        """Say so."""
        report_epoch(len(net.history), net.history[-1, "valid_loss"])


def is_best_epoch(net: NeuralNetClassifier) -> bool:
    """Whether the last epoch has the lowest validation loss of the whole history."""
    *earlier, last = net.history[:, "valid_loss"]
    return all(last < loss for loss in earlier)


def main() -> None:
    """Train, or go on training, and print the digest of the best epoch's weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()

    torch.manual_seed(SEED)
    train, val = load_rows(given.rows, "train"), load_rows(given.rows, "val")
    num_batches = count_batches(train)
    latest = Checkpoint(monitor=None, dirname=str(given.folder), fn_prefix="latest_", event_name=None)
    best = Checkpoint(monitor=is_best_epoch, dirname=str(given.folder), fn_prefix="best_", load_best=True)
    history = given.folder / "latest_history.json"
    num_done = len(History.from_file(history)) if history.exists() else 0
    net = NeuralNetClassifier(
        Network,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=MOMENTUM,
        lr=LR,
        max_epochs=NUM_EPOCHS - num_done,
        batch_size=BATCH_SIZE,
        iterator_train__shuffle=True,
        iterator_valid__batch_size=VAL_BATCH_SIZE,
        train_split=predefined_split(val),
        verbose=0,
        callbacks=[
            LoadInitState(latest),
            LRScheduler(
                LambdaLR,
                lr_lambda=lambda step: lr_factor(step, num_batches * NUM_EPOCHS),
                step_every="batch",
                last_epoch=num_done * num_batches - 1,
            ),
            GradientNormClipping(MAX_GRAD_NORM),
            best,
            latest,
            Report(),
            EarlyStopping(patience=PATIENCE, threshold=0),
        ],
    )
    net.fit(train, y=None)
    print(json.dumps({"weights_digest": digest_weights(net.module_)}))


if __name__ == "__main__":
    main()
