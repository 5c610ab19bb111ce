"""Train the classifier that measures samples, once for a set of images."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmjax._arrays import Batch, Params, PRNGKey, expand_like
from fmjax._checks import require, require_at_least, require_positive
from fmjax._progress import Progress, Silent
from fmjax.metrics.classifier import ImageClassifier, build
from fmjax.networks import ClassifierConfig

_REPORT_EVERY = 50


@runtime_checkable
class LabelledImages(Protocol):
    """A set of images with classes; `fmjax.data.Dataset` is one."""

    @property
    def num_classes(self) -> int | None:
        """How many classes there are, or None."""
        ...

    def examples(self) -> Batch:
        """All images `[n, height, width, channel]` in [-1, 1], and their labels `[n]`."""
        ...


@dataclass(frozen=True)
class ClassifierTraining:
    """How the classifier is trained: AdamW, warm-up over a tenth of the steps, cosine decay.

    Attributes:
        num_epochs: How often each image is seen, on average.
        min_steps: At least so many steps, however few images there are.
        batch_size: Images of one step, drawn with replacement.
        learning_rate: The highest.
        weight_decay: Of AdamW.
        max_shift: Images are shifted by up to so many pixels each way, edges repeated. Shifts
            keep the class of anything; mirror images of digits would not.
        seed: Of the weights, the draws and the shifts.
    """

    num_epochs: float = 7.0
    min_steps: int = 800
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    max_shift: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive("num_epochs", self.num_epochs)
        require_at_least("min_steps", self.min_steps, 1)
        require_at_least("batch_size", self.batch_size, 1)
        require_positive("learning_rate", self.learning_rate)
        require_at_least("weight_decay", self.weight_decay, 0)
        require_at_least("max_shift", self.max_shift, 0)

    def num_steps(self, num_images: int) -> int:
        """Steps of training on so many images."""
        return max(self.min_steps, round(self.num_epochs * num_images / self.batch_size))


class _State(NamedTuple):
    params: Params
    opt_state: Any


def train_classifier(
    train: LabelledImages,
    test: LabelledImages,
    *,
    config: ClassifierConfig = ClassifierConfig(),
    training: ClassifierTraining = ClassifierTraining(),
    progress: Progress = Silent(),
) -> ImageClassifier:
    """Train on one set, measure the accuracy on the other.

    Each step is one dispatch: inside a scan, XLA's convolutions on the CPU take eight times
    as long.

    Args:
        train: What to train on, kept on the device as a whole.
        test: What `test_accuracy` is measured on. It takes no part in the training.
        config: Sizes of the network.
        training: How it is trained.
        progress: Hears one task, in steps.

    Raises:
        ValueError: If a set has no classes, or the two differ in shape or number of classes.
    """
    images, labels = _images_and_labels(train, "train")
    test_images, test_labels = _images_and_labels(test, "test")
    event_shape = images.shape[1:]
    same = (test_images.shape[1:], test.num_classes) == (event_shape, train.num_classes)
    rule = f"hold images of {event_shape} in {train.num_classes} classes, as train"
    require(same, "test", rule, f"{test_images.shape[1:]} in {test.num_classes}")
    num_classes = int(train.num_classes or 0)
    num_steps = training.num_steps(len(images))
    key = jax.random.key(training.seed)
    optimizer = _optimizer(training, num_steps)
    params = build(config, event_shape, num_classes).init(key)
    step = _make_step(training, optimizer, build(config, event_shape, num_classes).apply)
    state = _State(params, optimizer.init(params))
    on_device = (jnp.asarray(images, dtype=jnp.float32), jnp.asarray(labels))
    with progress.task("training the classifier", num_steps) as advance:
        for number in range(0, num_steps, _REPORT_EVERY):
            steps = min(_REPORT_EVERY, num_steps - number)
            for offset in range(steps):
                state, loss = step(state, jax.random.fold_in(key, number + offset), *on_device)
            advance(steps, note=f"loss {float(loss):.3f}")
    untested = ImageClassifier(config, event_shape, num_classes, state.params, math.nan)
    accuracy = untested.accuracy(test_images, test_labels)
    return dataclasses.replace(untested, test_accuracy=accuracy)


def _images_and_labels(images: LabelledImages, name: str) -> tuple[np.ndarray, np.ndarray]:
    require(images.num_classes is not None, name, "have classes", "an unconditional set")
    examples = images.examples()
    return np.asarray(examples.x1), np.asarray(examples.cond)


def _optimizer(training: ClassifierTraining, num_steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(
        0.0, training.learning_rate, max(1, num_steps // 10), max(2, num_steps)
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=training.weight_decay)
    )


def _make_step(
    training: ClassifierTraining, optimizer: optax.GradientTransformation, apply: Callable
) -> Callable[..., tuple[_State, jax.Array]]:
    """`(state, key, images, labels) -> (state, loss)`, jitted; the state is donated."""

    def loss_of(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = apply(params, images)[0]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def step(state: _State, key: PRNGKey, images: jax.Array, labels: jax.Array):
        key_draw, key_shift = jax.random.split(key)
        drawn = jax.random.randint(key_draw, (training.batch_size,), 0, len(images))
        shifted = shift_images(key_shift, images[drawn], training.max_shift)
        loss, gradient = jax.value_and_grad(loss_of)(state.params, shifted, labels[drawn])
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return _State(optax.apply_updates(state.params, updates), opt_state), loss

    return jax.jit(step, donate_argnums=0)


def shift_images(key: PRNGKey, images: jax.Array, max_shift: int) -> jax.Array:
    """Each image moved by up to `max_shift` pixels each way, its edge pixels repeated."""
    num, height, width, _ = images.shape
    by = jax.random.randint(key, (2, num), -max_shift, max_shift + 1)
    rows = jnp.clip(by[0][:, None] + jnp.arange(height)[None], 0, height - 1)
    columns = jnp.clip(by[1][:, None] + jnp.arange(width)[None], 0, width - 1)
    which = expand_like(jnp.arange(num), jnp.empty((num, 1, 1)))
    return images[which, rows[:, :, None], columns[:, None, :]]
