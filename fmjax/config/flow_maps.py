"""Build flow maps (MeanFlow and shortcut models) from a config, and check their sampling."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax._arrays import Cond, Params, Points, Times
from fmjax._checks import require
from fmjax._specs import CondSpec
from fmjax.config.experiment import AnyNetwork, Config
from fmjax.config.losses import LossConfig, ShortcutConfig
from fmjax.losses import BuiltInGuidance, Objective, mean_flow_objective, shortcut_objective
from fmjax.networks import NetworkConfig, make_flow_map
from fmjax.paths import (
    CountedField,
    FlowMapFn,
    FlowMapNet,
    Independent,
    VelocityFn,
    VelocityNet,
    evaluations,
    require_velocity_process,
)
from fmjax.solvers import classifier_free


class TrainedMap(NamedTuple):
    """A flow map with the settings of its training, and the guidance with which it is sampled.

    Attributes:
        net: The network.
        built_in: Guidance that the network was trained with. In a shortcut model it applies to
            jumps, not to the velocity.
        null_cond: Condition that stands for no condition; None if it was not trained with one.
        num_steps: Number of steps of the finest grid of a shortcut model; None if jumps between
            any two times were trained.
        scale: Guidance scale; 1 is no guidance.
        interval: First and last time with guidance.
    """

    net: FlowMapNet
    built_in: BuiltInGuidance
    null_cond: Cond
    num_steps: int | None
    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def with_guidance(self, scale: float, interval: tuple[float, float]) -> "TrainedMap":
        """Return the map with another guidance scale and interval of guided times."""
        return self._replace(scale=scale, interval=interval)

    def check(self, *, jumps: bool = True) -> None:
        """Raise a `ValueError` unless the network was trained for the guidance.

        Args:
            jumps: Whether jumps are sampled, instead of the velocity field.
        """
        built_in, scale, (low, high) = self.built_in, self.scale, self.interval
        if built_in.max_scale is not None:
            scale_trained = 1.0 <= scale <= built_in.max_scale
            rule = f"lie in [1, {built_in.max_scale:g}], the scales of the training"
            require(scale_trained, "guidance", rule, scale)
            rule = (
                f"start at or before {built_in.first:g} and end at or after {built_in.last:g}, "
                "as in the training"
            )
            interval_trained = low <= built_in.first and high >= built_in.last
            require(interval_trained, "guidance_interval", rule, self.interval)
        elif scale != 1.0:
            rule = f"be 1 for a network with a built-in guidance scale of {built_in.scale:g}"
            unguided = not built_in.enabled or (self.num_steps is not None and not jumps)
            require(unguided, "guidance", rule, scale)
            rule = "be 1 for a model without classes or with loss.label_drop = 0"
            require(self.null_cond is not None, "guidance", rule, scale)

    def velocity_net(self) -> VelocityNet:
        """Return the velocity as a network, at a guidance scale of 1 if guidance is an input."""
        unguided = self.with_guidance(1.0, (0.0, 1.0))

        def apply(params: Params, t: Times, x: Points, cond: Cond = None) -> Points:
            return unguided.map_fn(params)(t, t, x, cond)

        return VelocityNet(self.net.init, apply, self.net.tensor_axes)

    def map_fn(self, params: Params, *, jumps: bool = True) -> FlowMapFn:
        """Return the guided map: by the guidance input if there is one, else classifier-free.

        Args:
            params: Parameters of the network.
            jumps: Whether jumps are sampled, instead of the velocity field.

        Raises:
            ValueError: If the network was not trained for this scale or interval, or has a
                built-in scale.
        """
        self.check(jumps=jumps)
        scale, interval = self.scale, self.interval
        if self.built_in.is_input:
            return partial(self._jump, params, jnp.array([[scale, *interval]]))
        map_fn = partial(self._jump, params, None)
        if scale == 1.0:
            return map_fn

        def field_of(t: Times, x: Points, cond: Cond = None) -> Points:
            assert cond is not None
            return map_fn(cond[1], t, x, cond[0])

        def guided_to(r: Times) -> VelocityFn:
            # Guidance evaluates a batch of twice the size: pass the end times as part of the
            # condition, so that they are repeated too.
            return classifier_free(field_of, (self.null_cond, r), scale, interval)

        return CountedField(
            lambda r, t, x, cond=None: guided_to(r)(t, x, (cond, r)),
            lambda t: evaluations(guided_to(t), t),
        )

    def _jump(
        self,
        params: Params,
        guidance: Float[Array, "1 3"] | None,
        r: Times,
        t: Times,
        x: Points,
        cond: Cond = None,
    ) -> Points:
        """Evaluate the mean velocity from t to r, for one guidance (scale, first, last)."""
        if self.num_steps is not None:  # The shortest steps were trained as the velocity, r = t.
            r = jnp.where(r - t > 1.5 / self.num_steps, r, t)
        rows = None if guidance is None else jnp.broadcast_to(guidance, (t.shape[0], 3))
        return self.net.apply(params, r, t, x, cond, rows)


def build_flow_map(
    config: Config, event_shape: tuple[int, ...], conditions: CondSpec, null_cond: Cond
) -> tuple[TrainedMap, Objective]:
    """Build the flow map and its objective.

    Args:
        config: The experiment.
        event_shape: Shape of one example.
        conditions: Description of the condition; None for an unconditional model.
        null_cond: Condition that stands for no condition, or None.

    Raises:
        ValueError: If parts of the config contradict each other or the data.
    """
    loss = config.loss
    assert not isinstance(loss, LossConfig)
    rule = "be Independent for a flow map"
    require(isinstance(config.coupling, Independent), "coupling", rule, config.coupling)
    label_drop = 0.0 if null_cond is None else loss.label_drop
    if isinstance(loss, ShortcutConfig):
        rule = "be 1 for a network without classes or with loss.label_drop = 0"
        require(loss.guidance == 1.0 or label_drop > 0.0, "loss.guidance", rule, loss.guidance)
        net = make_flow_map(config.network, event_shape, conditions)
        objective = shortcut_objective(
            net,
            require_velocity_process(config.path),
            num_steps=loss.num_steps,
            bootstrap_ratio=loss.bootstrap_ratio,
            density=loss.density,
            stratified=loss.stratified,
            guidance=loss.guidance,
            label_drop=label_drop,
            null_cond=null_cond,
        )
        built_in = BuiltInGuidance(loss.guidance)
        return TrainedMap(net, built_in, null_cond, loss.num_steps), objective
    network = _forward_differentiable(config.network)
    net = make_flow_map(network, event_shape, conditions, guided=loss.guidance.is_input)
    objective = mean_flow_objective(
        net,
        require_velocity_process(config.path),
        improved=loss.improved,
        density=loss.density,
        ratio_r_neq_t=loss.ratio_r_neq_t,
        power=loss.power,
        floor=loss.floor,
        guidance=loss.guidance,
        label_drop=label_drop,
        null_cond=null_cond,
    )
    return TrainedMap(net, loss.guidance, null_cond, None), objective


def _forward_differentiable(network: AnyNetwork) -> AnyNetwork:
    """Return the network with plain attention; raise if its config selects a kernel."""
    attention = getattr(network, "attention", "xla")
    rule = "be auto or xla for MeanFlow, which uses forward-mode differentiation"
    require(attention in ("auto", "xla"), "network.attention", rule, attention)
    return plain_attention(network)


def plain_attention(network: AnyNetwork) -> AnyNetwork:
    """Return the config with plain attention: kernels support reverse-mode derivatives only."""
    if not isinstance(network, NetworkConfig) or not hasattr(network, "attention"):
        return network
    return dataclasses.replace(network, attention="xla")
