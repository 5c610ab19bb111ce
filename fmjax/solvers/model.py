"""A model: a network, and what sampling from it depends on."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

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

PredictFn: TypeAlias = Callable[..., Points]
"""Prediction of a network, `(t, x, cond) -> prediction`."""


@runtime_checkable
class GuidedMap(Protocol):
    """A flow map with guidance, possibly the one that it was trained with."""

    @property
    def num_steps(self) -> int | None:
        """Number of steps of the finest grid; None if it jumps between any two times."""
        ...

    def with_guidance(self, scale: float, interval: tuple[float, float]) -> "GuidedMap":
        """Return the map with another guidance scale and interval of guided times."""
        ...

    def check(self, *, jumps: bool = True) -> None:
        """Raise a `ValueError` unless the map was trained for its guidance.

        Args:
            jumps: Whether jumps are sampled, instead of the velocity field.
        """
        ...

    def map_fn(self, params: Params, *, jumps: bool = True) -> FlowMapFn:
        """Return the map with its guidance; `jumps` is False for its velocity field."""
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
        guided: Makes the guided prediction from the parameters (see `with_prediction`); None
            without guidance.
    """

    net: VelocityNet
    process: Process = AffinePath()
    prediction: Prediction = Prediction.VELOCITY
    null_cond: PyTree = None
    flow_map: GuidedMap | None = None
    guided: Callable[[Params], PredictFn] | None = None

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

    def with_prediction(self, predict_fn: Callable[[Params], PredictFn]) -> "Model":
        """Return the model with another prediction; a `Guidance` is made of this.

        Args:
            predict_fn: Makes the prediction `(t, x, cond) -> prediction` from the parameters. If
                one prediction takes more than one network evaluation, it has a method
                `evaluations(t)` that counts them (`fmjax.paths.CountedField`).
        """
        return self._replace(guided=predict_fn)

    def predict_fn(self, params: Params) -> PredictFn:
        """Return the prediction `(t, x, cond) -> prediction`, with the guidance of the model.

        Guiding the prediction is the same as guiding the velocity: the conversion is affine, and
        the weights of guidance sum to one.

        Args:
            params: Parameters of the network.

        Raises:
            ValueError: If the flow map was not trained for its guidance.
        """
        if self.guided is not None:
            return self.guided(params)
        if self.flow_map is not None:
            return velocity_of(self.flow_map.map_fn(params, jumps=False))
        return partial(self.net.apply, params)

    def velocity_fn(self, params: Params) -> VelocityFn:
        """Return the velocity field, with the guidance of the model.

        Args:
            params: Parameters of the network.

        Raises:
            ValueError: If the process is not a `VelocityProcess`, or the flow map was not trained
                for its guidance.
        """
        return self.velocity_process.velocity_fn(self.predict_fn(params), self.prediction)


def require_guidable(name: str, scale: float, null_cond: PyTree) -> None:
    """Raise a `ValueError` unless the guidance scale is 1 or there is a null condition."""
    rule = "be 1 for a model without classes or text, or with loss.label_drop = 0"
    require(scale == 1.0 or null_cond is not None, name, rule, scale)
