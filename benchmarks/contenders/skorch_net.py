"""skorch with `callbacks="disable"` and `train_split=None`: no scores, no printing, no validation.

With the argument `plain`, it has its own loader and the optimizer of its documentation; with `tuned`, gathered batches and fused
AdamW.
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


def train(work: Work, x: Array, y: Labels, seed: int, num_epochs: int, lap: Callable[[], None], variant: str) -> Layers:
    """Fit once, for all epochs."""
    torch.manual_seed(seed)
    is_tuned = variant == "tuned"
    options = {"optimizer": torch.optim.SGD}
    if work.optimizer == "adamw":
        options = {"optimizer": torch.optim.AdamW, "optimizer__fused": is_tuned, "optimizer__weight_decay": WEIGHT_DECAY}
    if is_tuned:
        options |= {"iterator_train__batch_size": None, "iterator_train__sampler": ShuffledIndices(len(y), work.batch_size)}
    else:
        options |= {"batch_size": work.batch_size, "iterator_train__shuffle": True}
    net = Net(
        build_network(work),
        criterion=torch.nn.CrossEntropyLoss,
        lr=work.lr,
        max_epochs=num_epochs,
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
