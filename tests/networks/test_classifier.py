"""Tests of the classifier: output shapes, training and argument checks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmjax.networks import ClassifierConfig, make_classifier

CONFIG = ClassifierConfig(width=8, num_features=6)


@pytest.mark.parametrize("event_shape", [(2, 3, 1), (8, 8, 1), (28, 28, 1), (32, 32, 3)])
def test_logits_and_features_have_correct_shapes_at_any_image_size(event_shape):
    net = make_classifier(CONFIG, event_shape, 10)
    params = jax.eval_shape(net.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((5, *event_shape), jnp.float32)
    logits, features = jax.eval_shape(net.apply, params, x)
    assert (logits.shape, features.shape) == ((5, 10), (5, 6))
    assert logits.dtype == features.dtype == jnp.float32


@pytest.mark.slow
def test_classifier_learns_the_quadrant_of_a_bright_spot():
    # The class is the quadrant with the bright spot. A linear rule on the pixels fails only by
    # noise, so the network must classify 95 % of the held-out images correctly.
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 2176)
    x = 0.3 * rng.standard_normal((2176, 8, 8, 1)).astype(np.float32)
    spots = 4 * np.stack([labels // 2, labels % 2], 1) + rng.integers(0, 4, (2176, 2))
    x[np.arange(2176), spots[:, 0], spots[:, 1]] += 2.0
    net = make_classifier(ClassifierConfig(width=16, num_features=32), (8, 8, 1), 4)
    optimizer = optax.adam(3e-3)
    params = net.init(jax.random.key(0))

    def step(carry, batch):
        def loss(params):
            losses = optax.softmax_cross_entropy_with_integer_labels(
                net.apply(params, batch[0])[0], batch[1]
            )
            return losses.mean()

        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def accuracy_after_training(params):
        order = jnp.tile(jnp.arange(2048).reshape(64, 32), (3, 1))
        batches = (jnp.asarray(x)[order], jnp.asarray(labels)[order])
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), batches)
        predicted = net.apply(params, jnp.asarray(x[2048:]))[0].argmax(-1)
        return (predicted == labels[2048:]).mean()

    assert float(accuracy_after_training(params)) >= 0.95


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassifierConfig(width=0), "width must be at least 1, got 0"),
        (lambda: ClassifierConfig(num_features=0), "num_features must be at least 1, got 0"),
        (
            lambda: make_classifier(CONFIG, (8, 8), 10),
            r"event_shape must be \(height, width, channel\) of 2x2 pixels or more",
        ),
        (lambda: make_classifier(CONFIG, (1, 8, 1), 10), "event_shape must be"),
        (lambda: make_classifier(CONFIG, (8, 8, 1), 1), "num_classes must be at least 2, got 1"),
    ],
)
def test_invalid_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
