"""Metrics: distances between samples and data, a classifier, and the straightness of a flow."""

from fmjax.metrics.classifier import ImageClassifier as ImageClassifier
from fmjax.metrics.classifier_cache import trained_classifier as trained_classifier
from fmjax.metrics.classifier_training import (
    ClassifierTraining as ClassifierTraining,
    EarlyStopping as EarlyStopping,
)
from fmjax.metrics.features import FeatureExtractor as FeatureExtractor
from fmjax.metrics.frechet import frechet_distance as frechet_distance
from fmjax.metrics.precision_recall import (
    PrecisionRecall as PrecisionRecall,
    precision_recall as precision_recall,
)
from fmjax.metrics.sliced_wasserstein import sliced_wasserstein as sliced_wasserstein
from fmjax.metrics.spectrum import (
    RadialSpectrum as RadialSpectrum,
    high_frequency_share as high_frequency_share,
    radial_spectrum as radial_spectrum,
)
from fmjax.metrics.straightness import Straightness as Straightness, straightness as straightness
