"""skorch with `callbacks="disable"` and `train_split=None`: no scores, no printing, no validation; fused optimizer.

Its loader is given as an argument: `collated` is its own, `gathered` the fastest that it takes.
"""

from collections.abc import Callable

import torch
from skorch import NeuralNetClassifier
from torch_parts import Rows, ShuffledIndices, build_network, copy_layers
from work import WEIGHT_DECAY, Array, Labels, Layers, Work, race


class Net(NeuralNetClassifier):
    """Ends a lap with every epoch."""

    def on_train_begin(self, net: NeuralNetClassifier, **kwargs: object) -> None:
        """Begin the first lap."""
        super().on_train_begin(net, **kwargs)
        self.lap()

    def on_epoch_end(self, net: NeuralNetClassifier, **kwargs: object) -> None:
        """End a lap."""
        super().on_epoch_end(net, **kwargs)
        self.lap()


def train(work: Work, x: Array, y: Labels, seed: int, num_epochs: int, lap: Callable[[], None], batches: str) -> Layers:
    """Fit once, for all epochs."""
    torch.manual_seed(seed)
    options = {"optimizer": torch.optim.SGD} if work.optimizer == "sgd" else {"optimizer": torch.optim.AdamW}
    if work.optimizer == "adamw":
        options["optimizer__weight_decay"] = WEIGHT_DECAY
    if batches == "gathered":
        options |= {"iterator_train__batch_size": None, "iterator_train__sampler": ShuffledIndices(len(y), work.batch_size)}
    else:
        options |= {"batch_size": work.batch_size, "iterator_train__shuffle": True}
    net = Net(
        build_network(work),
        criterion=torch.nn.CrossEntropyLoss,
        lr=work.lr,
        max_epochs=num_epochs,
        optimizer__fused=True,
        train_split=None,
        callbacks="disable",
        verbose=0,
        **options,
    )
    net.lap = lap
    net.fit(Rows(torch.from_numpy(x), torch.from_numpy(y)), y=None)
    return copy_layers(net.module_)


if __name__ == "__main__":
    race(train)
