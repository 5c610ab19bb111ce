"""How alike two sets of examples are, and whether samples are what was asked for."""

from fmjax.metrics.classifier import ImageClassifier
from fmjax.metrics.classifier_cache import trained_classifier
from fmjax.metrics.classifier_training import ClassifierTraining
from fmjax.metrics.features import FeatureExtractor
from fmjax.metrics.frechet import frechet_distance
from fmjax.metrics.precision_recall import PrecisionRecall, precision_recall
from fmjax.metrics.sliced_wasserstein import sliced_wasserstein

__all__ = [
    "ClassifierTraining",
    "FeatureExtractor",
    "ImageClassifier",
    "PrecisionRecall",
    "frechet_distance",
    "precision_recall",
    "sliced_wasserstein",
    "trained_classifier",
]
