"""Metrics: distances between samples and data, a classifier, straightness, and calibration."""

from fmjax.metrics.c2st import c2st as c2st
from fmjax.metrics.calibration import (
    Coverage as Coverage,
    RankHistogram as RankHistogram,
    expected_coverage as expected_coverage,
    rank_histogram as rank_histogram,
    sbc_ranks as sbc_ranks,
    tarp_coverage as tarp_coverage,
)
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
