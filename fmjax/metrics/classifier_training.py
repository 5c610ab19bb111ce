"""Training of the image classifier that provides features for metrics."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

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
    """Protocol of a data set of images with class labels, such as `fmjax.data.Dataset`."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None for a data set without labels."""
        ...

    def examples(self) -> Batch:
        """Return all images `[n, height, width, channel]` in [-1, 1] and their labels `[n]`."""
        ...


@dataclass(frozen=True)
class ClassifierTraining:
    """Training settings: AdamW, linear warm-up over a tenth of the steps, cosine decay.

    Attributes:
        num_epochs: Average number of times that each image is used.
        min_steps: Smallest number of training steps, for small data sets.
        batch_size: Number of images per training step, sampled with replacement.
        learning_rate: Peak learning rate, reached after the warm-up.
        weight_decay: Weight decay of AdamW.
        max_shift: Largest random shift of an image along each axis, in pixels; edge pixels are
            repeated. Unlike mirroring, a shift does not change the class of a digit.
        seed: Seed of the initial weights, the batches and the shifts.
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
        """Return the number of training steps for a data set of `num_images` images."""
        return max(self.min_steps, round(self.num_epochs * num_images / self.batch_size))


@dataclass(frozen=True)
class EarlyStopping:
    """Early stopping on small data sets, by the accuracy on held-out images.

    The accuracy is measured at regular steps on all shifts of each held-out image, which makes it
    finer than one over the number of images. Training ends after `patience` measurements without
    an improvement by at least one image, and the weights with the highest accuracy are kept.

    Attributes:
        below: Data sets with fewer images than this use early stopping.
        one_in: One of every `one_in` images is held out, stratified by class.
        check_every: Training steps between measurements, or one epoch if that is longer.
        patience: Number of measurements without improvement after which training ends.
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
        """Return the sorted indices of the images to train on and of the held-out images.

        No image is held out of a data set of fewer than two images or of one without early
        stopping.
        """
        num = len(labels)
        if num < 2 or num >= self.below:
            return np.arange(num), np.arange(0)
        order = np.random.default_rng(seed).permutation(num)
        by_class = order[np.argsort(labels[order], kind="stable")]
        held_out = np.sort(by_class[min(self.one_in // 2, num - 1) :: self.one_in])
        return np.setdiff1d(np.arange(num), held_out), held_out


class _State(NamedTuple):
    params: Params
    opt_state: optax.OptState


class _Best:
    """Keeps the weights with the highest accuracy on the held-out images.

    Attributes:
        params: The best weights, on the host.
        accuracy: Accuracy of the best weights, in [0, 1].
        checks_since: Number of measurements since the accuracy last improved by one image.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, max_shift: int) -> None:
        self._images, self._labels = _every_shift(images, labels, max_shift)
        self._gain, self._reference = 1.0 / len(images), -math.inf
        self.params: Params | None = None
        self.accuracy, self.checks_since = -1.0, 0

    def update(self, classifier: ImageClassifier) -> None:
        """Measure a classifier and keep its weights if they are the best so far."""
        accuracy = classifier.accuracy(self._images, self._labels)
        self.checks_since += 1
        if accuracy >= self._reference + self._gain:
            self._reference, self.checks_since = accuracy, 0
        if accuracy > self.accuracy:
            self.accuracy = accuracy
            # Copy: the next training step reuses the buffers of these arrays.
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
    """Train a classifier on one data set and measure its accuracy on another.

    Each step is dispatched separately: inside `jax.lax.scan`, convolutions on the CPU take eight
    times as long.

    Args:
        train: Images and labels to train on, all kept on the device.
        test: Images and labels on which `test_accuracy` is measured, not used for training.
        config: Sizes of the network.
        training: Training settings.
        stopping: Early stopping for small training sets.
        progress: Receives one task, counted in steps, then the training time and the accuracy.

    Raises:
        ValueError: If a set has no classes, or the two differ in shape or number of classes.
    """
    images, labels = _images_and_labels(train, "train")
    test_images, test_labels = _images_and_labels(test, "test")
    event_shape = images.shape[1:]
    matches = (test_images.shape[1:], test.num_classes) == (event_shape, train.num_classes)
    rule = f"hold images of shape {event_shape} in {train.num_classes} classes, like train"
    require(matches, "test", rule, f"shape {test_images.shape[1:]} in {test.num_classes}")
    start = time.perf_counter()
    num_steps = training.num_steps(len(images))
    untrained = ImageClassifier(config, event_shape, int(train.num_classes or 0), {}, math.nan)
    fitted, held_out = stopping.split(labels, training.seed)
    best = _Best(images[held_out], labels[held_out], training.max_shift) if len(held_out) else None
    check_every = max(stopping.check_every, math.ceil(len(fitted) / training.batch_size))
    params, steps_taken = _fit(
        untrained,
        images[fitted],
        labels[fitted],
        training,
        num_steps,
        every=check_every if best else _REPORT_EVERY,
        best=best,
        patience=stopping.patience,
        progress=progress,
    )
    trained = dataclasses.replace(untrained, params=params)
    accuracy = trained.accuracy(test_images, test_labels)
    limit = f" of at most {num_steps}" if best else ""
    progress.say(
        f"trained the classifier in {time.perf_counter() - start:.1f} s, {steps_taken} "
        f"steps{limit}: {100 * accuracy:.2f} % accuracy on the test images"
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
    """Return the trained weights and the number of steps taken; `best` may end training early."""
    key = jax.random.key(training.seed)
    optimizer = _optimizer(training, num_steps)
    network = build(untrained.config, untrained.event_shape, untrained.num_classes)
    params = network.init(key)
    step = _make_step(training, optimizer, network.apply)
    state, steps_taken = _State(params, optimizer.init(params)), 0
    on_device = (jnp.asarray(images, dtype=jnp.float32), jnp.asarray(labels))
    with progress.task("training the classifier", num_steps) as advance:
        advance(0, COMPILING)
        while steps_taken < num_steps:
            steps = min(every, num_steps - steps_taken)
            for number in range(steps_taken, steps_taken + steps):
                state, loss = step(state, jax.random.fold_in(key, number), *on_device)
            steps_taken += steps
            note = f"loss {float(loss):.3f}"
            if best is not None:
                best.update(dataclasses.replace(untrained, params=state.params))
                note += f", {100 * best.accuracy:.1f} % accuracy on held-out images"
            advance(steps, note=note)
            if best is not None and best.checks_since >= patience:
                break
    if best is None:
        return state.params, steps_taken
    assert best.params is not None
    return best.params, steps_taken


def _every_shift(
    images: np.ndarray, labels: np.ndarray, max_shift: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the images under every shift that `shift_images` may sample, and their labels."""
    shifts = range(-max_shift, max_shift + 1)
    height, width = images.shape[1:3]
    rows = [np.clip(np.arange(height) + by, 0, height - 1) for by in shifts]
    columns = [np.clip(np.arange(width) + by, 0, width - 1) for by in shifts]
    shifted = [images[:, r][:, :, c] for r, c in itertools.product(rows, columns)]
    return np.concatenate(shifted), np.tile(labels, len(shifted))


def _images_and_labels(images: LabelledImages, name: str) -> tuple[np.ndarray, np.ndarray]:
    require(images.num_classes is not None, name, "have classes", "an unlabeled data set")
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
    training: ClassifierTraining,
    optimizer: optax.GradientTransformation,
    apply: Callable[..., tuple[jax.Array, jax.Array]],
) -> Callable[..., tuple[_State, jax.Array]]:
    """Make the jitted step `(state, key, images, labels) -> (state, loss)`; it donates `state`."""

    def loss_of(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = apply(params, images)[0]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def step(state: _State, key: PRNGKey, images: jax.Array, labels: jax.Array):
        batch_key, shift_key = jax.random.split(key)
        indices = jax.random.randint(batch_key, (training.batch_size,), 0, len(images))
        shifted = shift_images(shift_key, images[indices], training.max_shift)
        loss, grads = jax.value_and_grad(loss_of)(state.params, shifted, labels[indices])
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return _State(optax.apply_updates(state.params, updates), opt_state), loss

    return jax.jit(step, donate_argnums=0)


def shift_images(key: PRNGKey, images: jax.Array, max_shift: int) -> jax.Array:
    """Shift each image at random by up to `max_shift` pixels along each axis, repeating edges."""
    num, height, width, _ = images.shape
    by = jax.random.randint(key, (2, num), -max_shift, max_shift + 1)
    rows = jnp.clip(by[0][:, None] + jnp.arange(height)[None], 0, height - 1)
    columns = jnp.clip(by[1][:, None] + jnp.arange(width)[None], 0, width - 1)
    image_index = expand_like(jnp.arange(num), jnp.empty((num, 1, 1)))
    return images[image_index, rows[:, :, None], columns[:, None, :]]
