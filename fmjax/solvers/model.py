"""A model: a network, and what sampling from it depends on."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import PyTree

from fmjax._arrays import Params, Points
from fmjax._checks import require
from fmjax.paths import (
    AffinePath,
    FlowMapFn,
    Prediction,
    Process,
    Schedule,
    VelocityFn,
    VelocityNet,
    VelocityProcess,
    require_conversion,
    require_velocity_process,
    velocity_of,
)
from fmjax.solvers.guidance import classifier_free


@runtime_checkable
class GuidedMap(Protocol):
    """A flow map that may have been trained with guidance."""

    @property
    def num_steps(self) -> int | None:
        """Number of steps of the finest grid; None if it jumps between any two times."""
        ...

    def check(self, scale: float, interval: tuple[float, float], *, jumps: bool = True) -> None:
        """Raise a `ValueError` unless the map can be sampled with this guidance."""
        ...

    def guided(
        self, params: Params, scale: float, interval: tuple[float, float], *, jumps: bool = True
    ) -> FlowMapFn:
        """Return the map with guidance; `jumps` is False for its velocity field."""
        ...


class Model(NamedTuple):
    """A network, and what sampling from it depends on.

    Attributes:
        net: The network. For a flow map, its velocity field.
        process: The process of the training, such as an `AffinePath`.
        prediction: Which quantity the network predicts.
        null_cond: Condition that stands for no condition; None if the network was not trained
            with one.
        flow_map: The flow map; None if the network predicts a velocity.
    """

    net: VelocityNet
    process: Process = AffinePath()
    prediction: Prediction = Prediction.VELOCITY
    null_cond: PyTree = None
    flow_map: GuidedMap | None = None

    @property
    def velocity_process(self) -> VelocityProcess:
        """The process, if it has a velocity field.

        Raises:
            ValueError: If the process is not a `VelocityProcess`.
        """
        return require_velocity_process(self.process)

    @property
    def affine_path(self) -> AffinePath:
        """The process, if it is an `AffinePath`.

        Raises:
            ValueError: If it is another process.
        """
        require_conversion(self.process, self.prediction)
        assert isinstance(self.process, AffinePath)
        return self.process

    @property
    def schedule(self) -> Schedule | None:
        """The schedule of an `AffinePath`; None for another process."""
        return self.process.schedule if isinstance(self.process, AffinePath) else None

    def predict_fn(
        self, params: Params, scale: float = 1.0, interval: tuple[float, float] = (0.0, 1.0)
    ) -> Callable[..., Points]:
        """Return the network's prediction `(t, x, cond) -> prediction`, with guidance.

        Guiding the prediction is the same as guiding the velocity: the conversion is affine, and
        the weights of guidance sum to one.

        Args:
            params: Parameters of the network.
            scale: Classifier-free guidance scale; 1 is no guidance.
            interval: First and last time with guidance.

        Raises:
            ValueError: If the scale is not 1 and the model has no null condition, or the flow map
                was not trained for this guidance.
        """
        if self.flow_map is not None:
            return velocity_of(self.flow_map.guided(params, scale, interval, jumps=False))
        predict_fn = partial(self.net.apply, params)
        require_guidable("guidance", scale, self.null_cond)
        if scale == 1.0:
            return predict_fn
        return classifier_free(predict_fn, self.null_cond, scale, interval)

    def velocity_fn(
        self, params: Params, scale: float = 1.0, interval: tuple[float, float] = (0.0, 1.0)
    ) -> VelocityFn:
        """Return the velocity field, with guidance; the arguments are those of `predict_fn`.

        Raises:
            ValueError: If the process is not a `VelocityProcess`, or as `predict_fn` raises.
        """
        return self.velocity_process.velocity_fn(
            self.predict_fn(params, scale, interval), self.prediction
        )


def require_guidable(name: str, scale: float, null_cond: PyTree) -> None:
    """Raise a `ValueError` unless the guidance scale is 1 or there is a null condition."""
    rule = "be 1 for a model without classes or text, or with loss.label_drop = 0"
    require(scale == 1.0 or null_cond is not None, name, rule, scale)
