"""Metrics: distances between samples and data, a classifier, and the straightness of a flow."""

from fmjax.metrics.classifier import ImageClassifier
from fmjax.metrics.classifier_cache import trained_classifier
from fmjax.metrics.classifier_training import ClassifierTraining, EarlyStopping
from fmjax.metrics.features import FeatureExtractor
from fmjax.metrics.frechet import frechet_distance
from fmjax.metrics.precision_recall import PrecisionRecall, precision_recall
from fmjax.metrics.sliced_wasserstein import sliced_wasserstein
from fmjax.metrics.spectrum import RadialSpectrum, high_frequency_share, radial_spectrum
from fmjax.metrics.straightness import Straightness, straightness

__all__ = [
    "ClassifierTraining",
    "EarlyStopping",
    "FeatureExtractor",
    "ImageClassifier",
    "PrecisionRecall",
    "RadialSpectrum",
    "Straightness",
    "frechet_distance",
    "high_frequency_share",
    "precision_recall",
    "radial_spectrum",
    "sliced_wasserstein",
    "straightness",
    "trained_classifier",
]
