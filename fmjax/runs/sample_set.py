"""Samples of a run on the host."""

from typing import NamedTuple

import numpy as np

from fmjax._arrays import Cond


class SampleSet(NamedTuple):
    """Samples on the host, with their conditions and costs.

    Attributes:
        x1: The samples, float32 `[num, *event]`.
        labels: Class label, or index of the prompt in `prompts`, of each sample, `[num]`; None for
            an unconditional model.
        nfe: Number of network evaluations of each sample, `[num]`.
        succeeded: Whether the solve of each sample reached t = 1, `[num]`.
        seconds: Wall time per sample, the median over all batches except the first, which
            compiles; NaN with a single batch.
        x0: Source points `[num, *event]` if the source distribution is a dataset; otherwise None.
        prompts: Prompts of a model conditioned on captions.
        cond: Condition of each sample, in data units, for a model that is conditioned on arrays: an
            array `[num, *shape]` or a dict of arrays; otherwise None.
    """

    x1: np.ndarray
    labels: np.ndarray | None
    nfe: np.ndarray
    succeeded: np.ndarray
    seconds: float = float("nan")
    x0: np.ndarray | None = None
    prompts: tuple[str, ...] = ()
    cond: Cond = None
