"""Classifier two-sample test: how well a classifier separates samples from a reference."""

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from fmjax._checks import require, require_at_least, require_between, require_count
from fmjax._inputs import as_features

HIDDEN_UNITS_PER_DIM = 10
MAX_EPOCHS = 10_000


def c2st(reference: ArrayLike, samples: ArrayLike, *, num_folds: int = 5, seed: int = 1) -> float:
    """Compute the accuracy of a classifier that separates samples from a reference.

    It is .5 on average if both sets have the same distribution, and 1 if they can be told apart
    without error. No classifier is more accurate than `(1 + TV) / 2` on average, where TV is the
    total variation distance between the distributions.

    Each coordinate is standardized by the mean and standard deviation of `reference`. An MLP with
    two hidden layers of `10 d` ReLU units, trained by Adam with scikit-learn's default settings,
    is tested on each fold after training on the others. These are the settings of the sbibm
    benchmark, so results for 10,000 points in each set can be compared with its tables. With fewer
    points the classifier finds smaller differences only.

    Args:
        reference: Points from the exact distribution, `[n, d]`. All points of both sets should
            differ: repeated points may be in the training and the test fold at once.
        samples: Points to compare with them, `[n, d]`.
        num_folds: Number of shuffled folds of the cross-validation, at least 2.
        seed: Seed of the folds and of the classifiers, in [0, 2**32). The same seed and data give
            the same result.

    Returns:
        Mean accuracy over the folds. For equal distributions its standard deviation is about
        `.6 / sqrt(2 n)`.

    Raises:
        ValueError: If the sets differ in shape, hold inf or nan or fewer than `num_folds` points,
            a coordinate of `reference` is constant, or a setting is out of range.

    Reference: Lopez-Paz and Oquab 2017, arXiv:1610.06545; as a metric of posteriors: Lueckmann et
        al. 2021, arXiv:2101.04653, appendix M.
    """
    require_count("num_folds", num_folds, 2)
    require_count("seed", seed, 0)
    require_between("seed", seed, 0, 2**32 - 1)
    x, y = _standardize(reference, samples)
    require_at_least("the number of points in reference", len(x), num_folds)
    from sklearn.model_selection import KFold  # Slow to import.
    from sklearn.neural_network import MLPClassifier

    points = np.concatenate([x, y])
    labels = np.repeat([0, 1], [len(x), len(y)])
    units = HIDDEN_UNITS_PER_DIM * x.shape[1]
    accuracies = []
    for train, test in KFold(num_folds, shuffle=True, random_state=seed).split(points):
        classifier = MLPClassifier(
            hidden_layer_sizes=(units, units), max_iter=MAX_EPOCHS, random_state=seed
        )
        classifier.fit(points[train], labels[train])
        accuracies.append(np.mean(classifier.predict(points[test]) == labels[test]))
    return float(np.mean(accuracies))


def _standardize(
    reference: ArrayLike, samples: ArrayLike
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    """Check both sets and standardize them by the moments of `reference`, in float32."""
    x, y = as_features("reference", reference), as_features("samples", samples)
    require(x.shape == y.shape, "samples", f"have the shape of reference, {x.shape}", y.shape)
    require(0 not in x.shape, "reference", "hold at least one point", f"shape {x.shape}")
    x, y = x.astype(np.float64), y.astype(np.float64)
    constant = np.flatnonzero(x.min(axis=0) == x.max(axis=0))
    require(not constant.size, "reference", "vary in every coordinate", f"constant {constant}")
    mean, std = x.mean(axis=0), x.std(axis=0, ddof=1)
    # float32 is precise enough after this, and twice as fast.
    return ((x - mean) / std).astype(np.float32), ((y - mean) / std).astype(np.float32)
