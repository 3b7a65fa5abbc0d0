"""What the peers' scripts share: rows, network, learning rate, printed lines. The numbers are those of `resume.py`'s Refit."""

import hashlib
import math
import sys
from pathlib import Path

import safetensors.torch
from torch import nn
from torch.utils.data import TensorDataset

SEED = 3
NUM_EPOCHS = 10
BATCH_SIZE = 32
LR = 0.03
MOMENTUM = 0.9
WARMUP_STEPS = 50
MAX_GRAD_NORM = 5.0
PATIENCE = 2


def load_rows(path: Path, split: str) -> TensorDataset:
    """Load `train` or `val` as `resume.py` froze them: inputs `(N, 64)` and classes `(N,)`."""
    tensors = safetensors.torch.load_file(path)
    return TensorDataset(tensors[f"{split}_x"], tensors[f"{split}_y"])


def count_batches(rows: TensorDataset) -> int:
    """Return the batches in an epoch, the last one shorter."""
    return -(-len(rows) // BATCH_SIZE)


class Network(nn.Sequential):
    """Logits `(B, 10)` of rows `(B, 64)`."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2)),
            *(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2)),
            nn.Linear(32, 10),
        )


def lr_factor(step: int, num_steps: int) -> float:
    """Share of `LR` at a step, counted from 0: a linear warm-up, then a half cosine to 0."""
    if step < WARMUP_STEPS:
        return (step + 1) / (WARMUP_STEPS + 1)
    progress = min(1.0, (step - WARMUP_STEPS) / (num_steps - WARMUP_STEPS))
    return (1 + math.cos(math.pi * progress)) / 2


def report_start() -> None:
    """Print that training begins."""
    print("training", file=sys.stderr, flush=True)


def report_epoch(epoch: int, val_loss: float) -> None:
    """Print that an epoch, counted from 1, was trained."""
    print(f"epoch {epoch}/{NUM_EPOCHS}: val loss {val_loss:.6f}", file=sys.stderr, flush=True)


def digest_weights(model: nn.Module) -> str:
    """Hash the bytes of the `state_dict`."""
    return hashlib.sha256(safetensors.torch.save(model.state_dict())).hexdigest()
