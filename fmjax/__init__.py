"""fmjax trains and samples flow-matching models in JAX, on TPU and GPU.

The names below are the public face. They are imported when first used, so that
`import fmjax` costs little more than `import jax`.

    from fmjax import AffinePath, DiTConfig, flow_matching_objective, make_network, sample
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # As in `typing`, which takes longer to import than all of this file.

if TYPE_CHECKING:
    from fmjax._arrays import Batch as Batch
    from fmjax._arrays import Text as Text
    from fmjax._arrays import TextPart as TextPart
    from fmjax._arrays import TextShape as TextShape
    from fmjax._memory import keep_freed_memory as keep_freed_memory
    from fmjax.config import Config as Config
    from fmjax.config import build as build
    from fmjax.config.generate import GenerateConfig as GenerateConfig
    from fmjax.data import batches as batches
    from fmjax.jobs.released.generate import generate as generate
    from fmjax.losses import BuiltInGuidance as BuiltInGuidance
    from fmjax.losses import Objective as Objective
    from fmjax.losses import TimeWeight as TimeWeight
    from fmjax.losses import flow_matching_loss as flow_matching_loss
    from fmjax.losses import flow_matching_objective as flow_matching_objective
    from fmjax.losses import mean_flow_objective as mean_flow_objective
    from fmjax.losses import shortcut_objective as shortcut_objective
    from fmjax.metrics import frechet_distance as frechet_distance
    from fmjax.metrics import high_frequency_share as high_frequency_share
    from fmjax.metrics import precision_recall as precision_recall
    from fmjax.metrics import radial_spectrum as radial_spectrum
    from fmjax.metrics import sliced_wasserstein as sliced_wasserstein
    from fmjax.metrics import straightness as straightness
    from fmjax.networks import DIT_B as DIT_B
    from fmjax.networks import DIT_L as DIT_L
    from fmjax.networks import DIT_S as DIT_S
    from fmjax.networks import DIT_XL as DIT_XL
    from fmjax.networks import DiTConfig as DiTConfig
    from fmjax.networks import FluxConfig as FluxConfig
    from fmjax.networks import LoRAConfig as LoRAConfig
    from fmjax.networks import MLPConfig as MLPConfig
    from fmjax.networks import MMDiTConfig as MMDiTConfig
    from fmjax.networks import TextEncoderConfig as TextEncoderConfig
    from fmjax.networks import UNetConfig as UNetConfig
    from fmjax.networks import make_flow_map as make_flow_map
    from fmjax.networks import make_network as make_network
    from fmjax.paths import AffinePath as AffinePath
    from fmjax.paths import Cosine as Cosine
    from fmjax.paths import CosineBetas as CosineBetas
    from fmjax.paths import CosMap as CosMap
    from fmjax.paths import Independent as Independent
    from fmjax.paths import Linear as Linear
    from fmjax.paths import LinearBetas as LinearBetas
    from fmjax.paths import LogitNormal as LogitNormal
    from fmjax.paths import MinibatchOT as MinibatchOT
    from fmjax.paths import Mode as Mode
    from fmjax.paths import Polynomial as Polynomial
    from fmjax.paths import Prediction as Prediction
    from fmjax.paths import Shifted as Shifted
    from fmjax.paths import Tabulated as Tabulated
    from fmjax.paths import Uniform as Uniform
    from fmjax.paths import UniformSteps as UniformSteps
    from fmjax.paths import UShaped as UShaped
    from fmjax.paths import VarianceExploding as VarianceExploding
    from fmjax.paths import VariancePreserving as VariancePreserving
    from fmjax.paths import VelocityNet as VelocityNet
    from fmjax.paths import change_schedule as change_schedule
    from fmjax.paths import edm_grid as edm_grid
    from fmjax.paths import over_interval as over_interval
    from fmjax.paths import quantile_grid as quantile_grid
    from fmjax.paths import reversed_time as reversed_time
    from fmjax.paths import sample_times as sample_times
    from fmjax.paths import shifted_grid as shifted_grid
    from fmjax.paths import uniform_grid as uniform_grid
    from fmjax.pretrained.components import load_component as load_component
    from fmjax.pretrained.folder import open_model as open_model
    from fmjax.pretrained.folder import save_model as save_model
    from fmjax.runs.folder import open_run as open_run
    from fmjax.sharding import MeshConfig as MeshConfig
    from fmjax.sharding import make_mesh as make_mesh
    from fmjax.solvers import DDIM as DDIM
    from fmjax.solvers import AdaptiveSteps as AdaptiveSteps
    from fmjax.solvers import Adjoint as Adjoint
    from fmjax.solvers import Ancestral as Ancestral
    from fmjax.solvers import ConstantRate as ConstantRate
    from fmjax.solvers import DecreasingRate as DecreasingRate
    from fmjax.solvers import DPMSolverPP2M as DPMSolverPP2M
    from fmjax.solvers import ErrorControl as ErrorControl
    from fmjax.solvers import EulerMaruyama as EulerMaruyama
    from fmjax.solvers import ExactDivergence as ExactDivergence
    from fmjax.solvers import FixedSteps as FixedSteps
    from fmjax.solvers import Hutchinson as Hutchinson
    from fmjax.solvers import IncreasingDecreasingRate as IncreasingDecreasingRate
    from fmjax.solvers import IncreasingRate as IncreasingRate
    from fmjax.solvers import Samples as Samples
    from fmjax.solvers import SigmaRate as SigmaRate
    from fmjax.solvers import StochasticHeun as StochasticHeun
    from fmjax.solvers import UniPC as UniPC
    from fmjax.solvers import bits_per_dim as bits_per_dim
    from fmjax.solvers import calibrate as calibrate
    from fmjax.solvers import classifier_free as classifier_free
    from fmjax.solvers import dequantize as dequantize
    from fmjax.solvers import edit as edit
    from fmjax.solvers import encode as encode
    from fmjax.solvers import interpolate as interpolate
    from fmjax.solvers import log_density as log_density
    from fmjax.solvers import sample as sample
    from fmjax.solvers import sample_diffusion as sample_diffusion
    from fmjax.solvers import sample_flow_map as sample_flow_map
    from fmjax.solvers import sample_sde as sample_sde
    from fmjax.training import Checkpoints as Checkpoints
    from fmjax.training import OptimizerConfig as OptimizerConfig
    from fmjax.training import RunLogger as RunLogger
    from fmjax.training import fit as fit
    from fmjax.training import init_state as init_state
    from fmjax.training import make_optimizer as make_optimizer
    from fmjax.training import make_train_step as make_train_step

_HOMES = {
    "_arrays": ("Batch", "Text", "TextPart", "TextShape"),
    "_memory": ("keep_freed_memory",),
    "config": (
        "Config",
        "build",
    ),
    "config.generating": ("GenerateConfig",),
    "couplings": (
        "Independent",
        "MinibatchOT",
    ),
    "data": ("batches",),
    "guidance": ("classifier_free",),
    "losses": (
        "BuiltInGuidance",
        "Objective",
        "TimeWeight",
        "flow_matching_loss",
        "flow_matching_objective",
        "mean_flow_objective",
        "shortcut_objective",
    ),
    "metrics": (
        "frechet_distance",
        "high_frequency_share",
        "precision_recall",
        "radial_spectrum",
        "sliced_wasserstein",
        "straightness",
    ),
    "networks": (
        "DIT_B",
        "DIT_L",
        "DIT_S",
        "DIT_XL",
        "DiTConfig",
        "FluxConfig",
        "LoRAConfig",
        "MLPConfig",
        "MMDiTConfig",
        "TextEncoderConfig",
        "UNetConfig",
        "make_flow_map",
        "make_network",
    ),
    "paths": (
        "AffinePath",
        "Prediction",
        "change_schedule",
    ),
    "pretrained.components": ("load_component",),
    "pretrained.folder": ("open_model", "save_model"),
    "rates": (
        "ConstantRate",
        "DecreasingRate",
        "IncreasingDecreasingRate",
        "IncreasingRate",
        "SigmaRate",
    ),
    "schedules": (
        "Cosine",
        "CosineBetas",
        "Linear",
        "LinearBetas",
        "Polynomial",
        "VarianceExploding",
        "VariancePreserving",
    ),
    "solvers": (
        "AdaptiveSteps",
        "Adjoint",
        "Ancestral",
        "DDIM",
        "DPMSolverPP2M",
        "ErrorControl",
        "EulerMaruyama",
        "ExactDivergence",
        "FixedSteps",
        "Hutchinson",
        "Samples",
        "StochasticHeun",
        "UniPC",
        "bits_per_dim",
        "calibrate",
        "dequantize",
        "edit",
        "encode",
        "interpolate",
        "log_density",
        "sample",
        "sample_diffusion",
        "sample_flow_map",
        "sample_sde",
    ),
    "studies.generate": ("generate",),
    "studies.run_folder": ("open_run",),
    "times": (
        "CosMap",
        "LogitNormal",
        "Mode",
        "Shifted",
        "Tabulated",
        "UShaped",
        "Uniform",
        "UniformSteps",
        "edm_grid",
        "quantile_grid",
        "sample_times",
        "shifted_grid",
        "uniform_grid",
    ),
    "training": (
        "Checkpoints",
        "MeshConfig",
        "OptimizerConfig",
        "RunLogger",
        "fit",
        "init_state",
        "make_mesh",
        "make_optimizer",
        "make_train_step",
    ),
    "velocity": (
        "VelocityNet",
        "over_interval",
        "reversed_time",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fmjax' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"fmjax.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
