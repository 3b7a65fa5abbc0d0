"""JAX: an epoch is one jitted `lax.scan` over its steps, its state donated; NumPy draws the order of the rows, as JAX takes longer.

The optimizers are PyTorch's formulas in JAX, and so are the first weights. The first lap compiles.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from work import WEIGHT_DECAY, Array, Labels, Layers, Work, race

State = tuple
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def build_parameters(work: Work, seed: int) -> list[tuple[Array, Array]]:
    """Weights `(in, out)` and biases as `torch.nn.Linear` draws them: uniform within 1 / sqrt(in)."""
    generator = np.random.default_rng(seed)
    sizes = pairwise(work.widths)
    bounded = [(fan_in**-0.5, fan_in, fan_out) for fan_in, fan_out in sizes]
    return [
        (
            generator.uniform(-bound, bound, (fan_in, fan_out)).astype(np.float32),
            generator.uniform(-bound, bound, fan_out).astype(np.float32),
        )
        for bound, fan_in, fan_out in bounded
    ]


def compute_loss(parameters: State, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy of a batch."""
    *hidden, (weight, bias) = parameters
    for hidden_weight, hidden_bias in hidden:
        x = jax.nn.relu(x @ hidden_weight + hidden_bias)
    scores = jax.nn.log_softmax(x @ weight + bias)
    return -jnp.take_along_axis(scores, y[:, None], axis=1).mean()


def adamw_step(lr: float, step: jax.Array, parameters: State, moments: State, gradients: State) -> tuple[State, State]:
    """Algorithm 2 of Loshchilov and Hutter, 2019, as `torch.optim.AdamW` has it."""
    first, second = moments
    first = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, first, gradients)
    second = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, second, gradients)
    rate, root = lr / (1 - BETA1**step), jnp.sqrt(1 - BETA2**step)

    def move(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        return p * (1 - lr * WEIGHT_DECAY) - rate * m / (jnp.sqrt(v) / root + EPSILON)

    return jax.tree.map(move, parameters, first, second), (first, second)


@partial(jax.jit, static_argnums=(0,), donate_argnums=(1,))
def train_epoch(work: Work, state: State, x: jax.Array, y: jax.Array, order: jax.Array) -> State:
    """All steps of an epoch; `order` `(num_steps, batch_size)`."""

    def step(state: State, rows: jax.Array) -> tuple[State, jax.Array]:
        count, parameters, moments = state
        loss, gradients = jax.value_and_grad(compute_loss)(parameters, x[rows], y[rows])
        count = count + 1
        if work.optimizer == "sgd":
            parameters = jax.tree.map(lambda p, g: p - work.lr * g, parameters, gradients)
        else:
            parameters, moments = adamw_step(work.lr, count, parameters, moments, gradients)
        return (count, parameters, moments), loss

    return lax.scan(step, state, order)


def train(work: Work, x: Array, y: Labels, seed: int, num_epochs: int, lap: Callable[[], None]) -> Layers:
    """Train; the rows stay on the device."""
    generator = np.random.default_rng(seed)
    parameters = jax.tree.map(jnp.asarray, build_parameters(work, seed))
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    state = (jnp.zeros((), jnp.float32), parameters, () if work.optimizer == "sgd" else (zeros, jax.tree.map(jnp.copy, zeros)))
    rows, classes = jnp.asarray(x), jnp.asarray(y, jnp.int32)
    lap()
    for _ in range(num_epochs):
        order = generator.permutation(len(y)).astype(np.int32).reshape(work.num_steps, work.batch_size)
        state, _ = jax.block_until_ready(train_epoch(work, state, rows, classes, order))
        lap()
    return [(np.asarray(weight).T, np.asarray(bias)) for weight, bias in state[1]]


if __name__ == "__main__":
    race(train)
