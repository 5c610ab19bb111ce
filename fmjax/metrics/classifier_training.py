"""Train the classifier that measures samples, once for a set of images."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmjax._arrays import Batch, Params, PRNGKey, expand_like
from fmjax._checks import require, require_at_least, require_numbers, require_positive
from fmjax._progress import COMPILING, Progress, Silent
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
        require_numbers(self, "classifier.")
        require_positive("num_epochs", self.num_epochs)
        require_at_least("min_steps", self.min_steps, 1)
        require_at_least("batch_size", self.batch_size, 1)
        require_positive("learning_rate", self.learning_rate)
        require_at_least("weight_decay", self.weight_decay, 0)
        require_at_least("max_shift", self.max_shift, 0)

    def num_steps(self, num_images: int) -> int:
        """Steps of training on so many images."""
        return max(self.min_steps, round(self.num_epochs * num_images / self.batch_size))


@dataclass(frozen=True)
class EarlyStopping:
    """When the training on few images ends before its last step.

    Some images are held out of the training. Their accuracy is measured at regular steps, on all
    shifts of each, so that it is a fine measure of few images. The training ends when it has not
    improved by one image for some measurements, and the weights of the best one are kept.

    Attributes:
        below: Sets of fewer images than this stop early.
        one_in: One image in so many is held out, evenly over the classes.
        check_every: Steps between measurements, or those of one epoch if that is longer.
        patience: Measurements without improvement that end the training.
    """

    below: int = 5_000
    one_in: int = 10
    check_every: int = 20
    patience: int = 5

    def __post_init__(self) -> None:
        require_at_least("below", self.below, 0)
        require_at_least("one_in", self.one_in, 2)
        require_at_least("check_every", self.check_every, 1)
        require_at_least("patience", self.patience, 1)

    def split(self, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the images to train on, and of those held out; both in rising order.

        None is held out of fewer than two images, nor of a set that does not stop early.
        """
        num = len(labels)
        if num < 2 or num >= self.below:
            return np.arange(num), np.arange(0)
        order = np.random.default_rng(seed).permutation(num)
        by_class = order[np.argsort(labels[order], kind="stable")]
        held = np.sort(by_class[min(self.one_in // 2, num - 1) :: self.one_in])
        return np.setdiff1d(np.arange(num), held), held


class _State(NamedTuple):
    params: Params
    opt_state: Any


class _Best:
    """The weights with the highest accuracy on images that are held out.

    Attributes:
        params: Those weights, on the host.
        accuracy: Their accuracy, in [0, 1].
        checks_since: Measurements since the accuracy last improved by one image.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, max_shift: int) -> None:
        self._images, self._labels = _every_shift(images, labels, max_shift)
        self._gain, self._reference = 1.0 / len(images), -math.inf
        self.params: Params | None = None
        self.accuracy, self.checks_since = -1.0, 0

    def update(self, classifier: ImageClassifier) -> None:
        """Measure a classifier and keep its weights if it is the best so far."""
        accuracy = classifier.accuracy(self._images, self._labels)
        self.checks_since += 1
        if accuracy >= self._reference + self._gain:
            self._reference, self.checks_since = accuracy, 0
        if accuracy > self.accuracy:
            self.accuracy = accuracy
            # Copies: the training donates its arrays to the next step.
            self.params = jax.tree.map(np.array, classifier.params)


def train_classifier(
    train: LabelledImages,
    test: LabelledImages,
    *,
    config: ClassifierConfig = ClassifierConfig(),
    training: ClassifierTraining = ClassifierTraining(),
    stopping: EarlyStopping = EarlyStopping(),  # noqa: B008 (frozen)
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
        stopping: When the training on few images ends early.
        progress: Receives one task, in steps, then the time and the accuracy.

    Raises:
        ValueError: If a set has no classes, or the two differ in shape or number of classes.
    """
    images, labels = _images_and_labels(train, "train")
    test_images, test_labels = _images_and_labels(test, "test")
    event_shape = images.shape[1:]
    same = (test_images.shape[1:], test.num_classes) == (event_shape, train.num_classes)
    rule = f"hold images of {event_shape} in {train.num_classes} classes, as train"
    require(same, "test", rule, f"{test_images.shape[1:]} in {test.num_classes}")
    start = time.perf_counter()
    num_steps = training.num_steps(len(images))
    untrained = ImageClassifier(config, event_shape, int(train.num_classes or 0), {}, math.nan)
    kept, held = stopping.split(labels, training.seed)
    best = _Best(images[held], labels[held], training.max_shift) if len(held) else None
    every = max(stopping.check_every, math.ceil(len(kept) / training.batch_size))
    params, taken = _fit(
        untrained,
        images[kept],
        labels[kept],
        training,
        num_steps,
        every=every if best else _REPORT_EVERY,
        best=best,
        patience=stopping.patience,
        progress=progress,
    )
    trained = dataclasses.replace(untrained, params=params)
    accuracy = trained.accuracy(test_images, test_labels)
    early = f" of at most {num_steps}" if best else ""
    progress.say(
        f"trained the classifier in {time.perf_counter() - start:.1f} s, {taken} steps{early}: "
        f"{100 * accuracy:.2f} % of the test images are right"
    )
    return dataclasses.replace(trained, test_accuracy=accuracy)


def _fit(
    untrained: ImageClassifier,
    images: np.ndarray,
    labels: np.ndarray,
    training: ClassifierTraining,
    num_steps: int,
    *,
    every: int,
    best: _Best | None,
    patience: int,
    progress: Progress,
) -> tuple[Params, int]:
    """The trained weights and the number of steps, which `best` may end early."""
    key = jax.random.key(training.seed)
    optimizer = _optimizer(training, num_steps)
    network = build(untrained.config, untrained.event_shape, untrained.num_classes)
    params = network.init(key)
    step = _make_step(training, optimizer, network.apply)
    state, taken = _State(params, optimizer.init(params)), 0
    on_device = (jnp.asarray(images, dtype=jnp.float32), jnp.asarray(labels))
    with progress.task("training the classifier", num_steps) as advance:
        advance(0, COMPILING)
        while taken < num_steps:
            steps = min(every, num_steps - taken)
            for number in range(taken, taken + steps):
                state, loss = step(state, jax.random.fold_in(key, number), *on_device)
            taken += steps
            note = f"loss {float(loss):.3f}"
            if best is not None:
                best.update(dataclasses.replace(untrained, params=state.params))
                note += f", {100 * best.accuracy:.1f} % of held-out images right"
            advance(steps, note=note)
            if best is not None and best.checks_since >= patience:
                break
    if best is None:
        return state.params, taken
    assert best.params is not None
    return best.params, taken


def _every_shift(
    images: np.ndarray, labels: np.ndarray, max_shift: int
) -> tuple[np.ndarray, np.ndarray]:
    """All moves of the images that `shift_images` may draw, and their labels."""
    moves = range(-max_shift, max_shift + 1)
    height, width = images.shape[1:3]
    rows = [np.clip(np.arange(height) + by, 0, height - 1) for by in moves]
    columns = [np.clip(np.arange(width) + by, 0, width - 1) for by in moves]
    shifted = [images[:, r][:, :, c] for r, c in itertools.product(rows, columns)]
    return np.concatenate(shifted), np.tile(labels, len(shifted))


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
