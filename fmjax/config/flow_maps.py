"""Flow maps from numbers and names: networks of mean velocities, their losses, their jumps."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmjax._arrays import Cond, Conditions, Params, Points, Times
from fmjax._checks import require
from fmjax.config.experiment import Config
from fmjax.config.losses import LossConfig, ShortcutConfig
from fmjax.config.solvers import FLOW_MAP
from fmjax.losses import (
    BuiltInGuidance,
    Objective,
    mean_flow_objective,
    shortcut_objective,
)
from fmjax.networks import NetworkConfig, make_flow_map
from fmjax.paths import (
    CountedField,
    FlowMapFn,
    FlowMapNet,
    Independent,
    VelocityFn,
    VelocityNet,
    evaluations,
)
from fmjax.solvers import classifier_free


class TrainedMap(NamedTuple):
    """A flow map as it was trained.

    Attributes:
        net: The network.
        guidance: What of it is built in. Of a shortcut model into jumps, not into the velocity.
        null_cond: What stands for no condition.
        num_steps: Of the finest grid on which jumps were learned; None if any jump was.
    """

    net: FlowMapNet
    guidance: BuiltInGuidance
    null_cond: Any
    num_steps: int | None

    def check(self, scale: float, interval: tuple[float, float], *, jumps: bool = True) -> None:
        """Raise unless its jumps, or its velocity alone, can be guided so."""
        built_in, (low, high) = self.guidance, interval
        if built_in.max_scale is not None:
            inside = 1.0 <= scale <= built_in.max_scale
            rule = f"lie between 1 and {built_in.max_scale:g}, the scales of the training"
            require(inside, "guidance", rule, scale)
            rule = f"begin by {built_in.first:g} and end from {built_in.last:g}, as in the training"
            seen = low <= built_in.first and high >= built_in.last
            require(seen, "guidance_interval", rule, interval)
        elif scale != 1.0:
            rule = f"be 1 for a network in which a scale of {built_in.scale:g} is built in"
            plain = not built_in.enabled or (self.num_steps is not None and not jumps)
            require(plain, "guidance", rule, scale)
            rule = "be 1 for a model without classes, or trained with loss.label_drop 0"
            require(self.null_cond is not None, "guidance", rule, scale)

    def velocity_net(self) -> VelocityNet:
        """Its velocity, as built in, unguided where guidance is an input."""

        def apply(params: Params, t: Times, x: Points, cond: Cond = None) -> Points:
            return self.guided(params, 1.0, (0.0, 1.0))(t, t, x, cond)

        return VelocityNet(self.net.init, apply, self.net.tensor_axes)

    def guided(
        self, params: Params, scale: float, interval: tuple[float, float], *, jumps: bool = True
    ) -> FlowMapFn:
        """The map of some parameters, guided: as an input where it is one, else from outside.

        Raises:
            ValueError: If the scale is not one that was learned, or one is built in already.
        """
        self.check(scale, interval, jumps=jumps)
        if self.guidance.is_input:
            return partial(self._jump, params, jnp.array([[scale, *interval]]))
        map_fn = partial(self._jump, params, None)
        if scale == 1.0:
            return map_fn

        def field_of(t: Times, x: Points, cond: Cond = None) -> Points:
            assert cond is not None
            return map_fn(cond[1], t, x, cond[0])

        def guided_to(r: Times) -> VelocityFn:
            # The end goes along as a part of the condition: guidance repeats its rows.
            return classifier_free(field_of, (self.null_cond, r), scale, interval)

        return CountedField(
            lambda r, t, x, cond=None: guided_to(r)(t, x, (cond, r)),
            lambda t: evaluations(guided_to(t), t),
        )

    def _jump(
        self,
        params: Params,
        asked: jax.Array | None,
        r: Times,
        t: Times,
        x: Points,
        cond: Cond = None,
    ) -> Points:
        if self.num_steps is not None:  # Its finest steps were learned as the velocity.
            r = jnp.where(r - t > 1.5 / self.num_steps, r, t)
        if asked is not None:
            asked = jnp.broadcast_to(asked, (t.shape[0], 3))
        return self.net.apply(params, r, t, x, cond, asked)


def build_flow_map(
    config: Config, event_shape: tuple[int, ...], conditions: Conditions, null_cond: Any
) -> tuple[TrainedMap, Objective]:
    """The network of a flow map and its objective.

    Raises:
        ValueError: If the parts do not fit together or the data.
    """
    loss = config.loss
    assert not isinstance(loss, LossConfig)
    rule = "be Independent for a flow map"
    require(isinstance(config.coupling, Independent), "coupling", rule, config.coupling)
    dropped: dict[str, Any] = dict(label_drop=loss.label_drop, null_cond=null_cond)
    if null_cond is None:
        dropped["label_drop"] = 0.0
    if isinstance(loss, ShortcutConfig):
        rule = "be 1 for a network without classes, or trained with loss.label_drop 0"
        able = loss.guidance == 1.0 or dropped["label_drop"] > 0.0
        require(able, "loss.guidance", rule, loss.guidance)
        net = make_flow_map(config.network, event_shape, conditions)
        objective = shortcut_objective(
            net,
            config.path,
            num_steps=loss.num_steps,
            bootstrap_ratio=loss.bootstrap_ratio,
            density=loss.density,
            stratified=loss.stratified,
            guidance=loss.guidance,
            **dropped,
        )
        built_in = BuiltInGuidance(loss.guidance)
        return TrainedMap(net, built_in, null_cond, loss.num_steps), objective
    network = _differentiable_forwards(config.network)
    net = make_flow_map(network, event_shape, conditions, guided=loss.guidance.is_input)
    objective = mean_flow_objective(
        net,
        config.path,
        improved=loss.improved,
        density=loss.density,
        ratio_r_neq_t=loss.ratio_r_neq_t,
        power=loss.power,
        floor=loss.floor,
        guidance=loss.guidance,
        **dropped,
    )
    return TrainedMap(net, loss.guidance, null_cond, None), objective


def _differentiable_forwards(network: NetworkConfig) -> NetworkConfig:
    """The same with plain attention, if no other is asked for."""
    kind = getattr(network, "attention", "xla")
    rule = "be auto or xla for MeanFlow, which takes a derivative forwards"
    require(kind in ("auto", "xla"), "network.attention", rule, kind)
    return plain_attention(network)


def plain_attention(network: Any) -> Any:
    """The network with attention by plain products: its kernels know reverse mode alone."""
    if not hasattr(network, "attention"):
        return network
    return dataclasses.replace(network, attention="xla")


def require_flow_map_samplings(config: Config, flow_map: TrainedMap | None) -> None:
    """Raise if samples or comparisons ask of a network what it has not learned."""
    sampling, compare = config.sampling, config.compare
    if sampling.solver == FLOW_MAP:
        require_jumps(flow_map, sampling.num_steps, sampling.grid, "sampling.")
    if FLOW_MAP in compare.fixed_solvers:
        for num in compare.num_steps:
            for grid in compare.grids:
                require_jumps(flow_map, num, grid, "compare.")
    if flow_map is not None:
        jumps = sampling.solver == FLOW_MAP
        flow_map.check(sampling.guidance, sampling.guidance_interval, jumps=jumps)
        flow_map.check(compare.guidance, (0.0, 1.0), jumps=FLOW_MAP in compare.fixed_solvers)


def require_jumps(
    flow_map: TrainedMap | None, num_steps: int | None, grid: str, name: str = ""
) -> TrainedMap:
    """The flow map, if it can take jumps on such a grid.

    Raises:
        ValueError: If it is none, or was not trained on such a grid.
    """
    if flow_map is None:
        raise ValueError(
            f"{name}solver {FLOW_MAP!r} needs a flow-map model (loss=MeanFlowConfig or "
            "ShortcutConfig): it must be another one for a model of a velocity"
        )
    if flow_map.num_steps is not None and num_steps is not None:
        rule = f"divide the {flow_map.num_steps} steps of the grid that the network was trained on"
        require(flow_map.num_steps % num_steps == 0, f"{name}num_steps", rule, num_steps)
        require(grid == "uniform", f"{name}grid", "be uniform for a shortcut model", grid)
    return flow_map
