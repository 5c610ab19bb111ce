"""Flow maps from numbers and names: networks of mean velocities, their losses, their jumps."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmjax._arrays import Cond, Conditions, Params, Points, Times
from fmjax._checks import require
from fmjax.config.fields import Config
from fmjax.config.losses import LossConfig, MeanFlowConfig, ShortcutConfig
from fmjax.config.sampling import SamplingConfig
from fmjax.config.solving import FLOW_MAP
from fmjax.couplings import Independent
from fmjax.guidance import classifier_free
from fmjax.losses import (
    BuiltInGuidance,
    Objective,
    mean_flow_objective,
    shortcut_objective,
)
from fmjax.networks import NetworkConfig, make_flow_map
from fmjax.velocity import CountedMap, FlowMapFn, FlowMapNet, VelocityFn, VelocityNet, evaluations


class TrainedMap(NamedTuple):
    """A flow map as it was trained.

    Attributes:
        net: The network.
        guidance: What of it is built in.
        null_cond: What stands for no condition.
        num_steps: Of the finest grid on which jumps were learned; None if any jump was.
    """

    net: FlowMapNet
    guidance: BuiltInGuidance
    null_cond: Any
    num_steps: int | None

    def velocity_net(self) -> VelocityNet:
        """Its velocity, as built in, unguided where guidance is an input."""

        def apply(params: Params, t: Times, x: Points, cond: Cond = None) -> Points:
            return self.guided(params, 1.0, (0.0, 1.0))(t, t, x, cond)

        return VelocityNet(self.net.init, apply, self.net.tensor_axes)

    def guided(self, params: Params, scale: float, interval: tuple[float, float]) -> FlowMapFn:
        """The map of some parameters, guided: as an input where it is one, else from outside.

        Raises:
            ValueError: If the scale is not one that was learned, or one is built in already.
        """
        built_in = self.guidance
        if built_in.max_scale is not None:
            inside = 1.0 <= scale <= built_in.max_scale
            rule = f"lie between 1 and {built_in.max_scale:g}, the scales of the training"
            require(inside, "guidance", rule, scale)
            return partial(self._jump, params, jnp.array([[scale, *interval]]))
        map_fn = partial(self._jump, params, None)
        if scale == 1.0:
            return map_fn
        rule = f"be 1 for a network in which a scale of {built_in.scale:g} is built in"
        require(not built_in.acts, "guidance", rule, scale)
        rule = "be 1 for a model without classes, or trained with loss.label_drop 0"
        require(self.null_cond is not None, "guidance", rule, scale)

        def field_of(t: Times, x: Points, cond: Cond = None) -> Points:
            assert cond is not None
            return map_fn(cond[1], t, x, cond[0])

        def guided_to(r: Times) -> VelocityFn:
            # The end goes along as a part of the condition: guidance repeats its rows.
            return classifier_free(field_of, (self.null_cond, r), scale, interval)

        return CountedMap(
            lambda r, t, x, cond=None: guided_to(r)(t, x, (cond, r)),
            lambda t: evaluations(guided_to(t), t),
        )

    def _jump(
        self, params: Params, asked: jax.Array | None, r: Times, t: Times, x: Points,
        cond: Cond = None,
    ) -> Points:  # fmt: skip
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
    dropped: dict[str, Any] = dict(drop_rate=loss.label_drop, null_cond=null_cond)
    if null_cond is None:
        dropped["drop_rate"] = 0.0
    if isinstance(loss, ShortcutConfig):
        net = make_flow_map(config.network, event_shape, conditions)
        objective = shortcut_objective(
            net, config.path, num_steps=loss.num_steps, share_apart=loss.share_apart,
            density=loss.density, stratified=loss.stratified, **dropped,
        )  # fmt: skip
        return TrainedMap(net, BuiltInGuidance(), null_cond, loss.num_steps), objective
    network = _differentiable_forwards(config.network)
    net = make_flow_map(network, event_shape, conditions, guided=loss.guidance.is_input)
    objective = mean_flow_objective(
        net, config.path, improved=loss.improved, density=loss.density,
        share_apart=loss.share_apart, power=loss.power, floor=loss.floor, guidance=loss.guidance,
        **dropped,
    )  # fmt: skip
    return TrainedMap(net, loss.guidance, null_cond, None), objective


def _differentiable_forwards(network: NetworkConfig) -> NetworkConfig:
    """The same with attention by plain products, the only one that knows forward mode."""
    kind = getattr(network, "attention", "xla")
    rule = "be auto or xla for MeanFlow, which takes a derivative forwards"
    require(kind in ("auto", "xla"), "network.attention", rule, kind)
    return network if kind == "xla" else dataclasses.replace(network, attention="xla")  # type: ignore[call-arg]


def require_flow_map_samplings(config: Config) -> None:
    """Raise if jumps are asked of a network that is no flow map, or more than it has learned."""
    is_map = isinstance(config.loss, MeanFlowConfig | ShortcutConfig)
    grid = config.loss.num_steps if isinstance(config.loss, ShortcutConfig) else None
    asked = []
    if config.sampling.solver == FLOW_MAP:
        asked.append(("sampling", config.sampling.num_steps))
    if FLOW_MAP in config.compare.fixed_solvers:
        asked += [("compare", num) for num in config.compare.num_steps]
    for name, num in asked:
        rule = "be of a velocity for a network that is no flow map"
        require(is_map, f"{name}.solver", rule, FLOW_MAP)
        _require_on_grid(f"{name}.num_steps", num, grid)


def require_jumps(flow_map: TrainedMap | None, sampling: SamplingConfig) -> TrainedMap:
    """The flow map, if it can take the jumps that are asked for.

    Raises:
        ValueError: If it is none, or was not trained on such a grid.
    """
    if flow_map is None:
        raise ValueError("solver must be of a velocity for a network that is no flow map, "
                         f"got {FLOW_MAP}")  # fmt: skip
    if flow_map.num_steps is not None:
        _require_on_grid("num_steps", sampling.num_steps, flow_map.num_steps)
        rule = "be uniform for a shortcut model"
        require(sampling.grid == "uniform", "grid", rule, sampling.grid)
    return flow_map


def _require_on_grid(name: str, num: int | None, grid: int | None) -> None:
    if grid is not None and num is not None:
        rule = f"divide the {grid} steps of the grid that the network was trained on"
        require(grid % num == 0, name, rule, num)
