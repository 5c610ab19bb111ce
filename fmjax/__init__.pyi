"""Stubs of the public names; `fmjax/__init__.py` reads them to import each on first use."""

from . import (
    config as config,
    data as data,
    jobs as jobs,
    losses as losses,
    metrics as metrics,
    networks as networks,
    paths as paths,
    planning as planning,
    pretrained as pretrained,
    report as report,
    runs as runs,
    sharding as sharding,
    solvers as solvers,
    training as training,
)
from ._arrays import Batch as Batch
from ._memory import keep_freed_memory as keep_freed_memory
from .data import Dataset as Dataset, batches as batches
from .jobs.evaluate.evaluate import evaluate as evaluate
from .jobs.released.generate import generate as generate
from .jobs.train.train import train as train
from .losses import (
    Objective as Objective,
    flow_matching_loss as flow_matching_loss,
    flow_matching_objective as flow_matching_objective,
    mean_flow_objective as mean_flow_objective,
    shortcut_objective as shortcut_objective,
)
from .metrics import frechet_distance as frechet_distance
from .networks import (
    DiTConfig as DiTConfig,
    FluxConfig as FluxConfig,
    LoRAConfig as LoRAConfig,
    MLPConfig as MLPConfig,
    MMDiTConfig as MMDiTConfig,
    TextEncoderConfig as TextEncoderConfig,
    UNetConfig as UNetConfig,
    make_network as make_network,
)
from .paths import (
    AffinePath as AffinePath,
    Cosine as Cosine,
    Independent as Independent,
    Linear as Linear,
    LogitNormal as LogitNormal,
    MinibatchOT as MinibatchOT,
    Prediction as Prediction,
    Schedule as Schedule,
    Uniform as Uniform,
    VelocityFn as VelocityFn,
    VelocityNet as VelocityNet,
    uniform_grid as uniform_grid,
)
from .pretrained.folder import open_model as open_model
from .runs.folder import open_run as open_run
from .runs.posterior import Posterior as Posterior
from .sharding import MeshConfig as MeshConfig, make_mesh as make_mesh
from .solvers import (
    AdaptiveSteps as AdaptiveSteps,
    Adjoint as Adjoint,
    FixedSteps as FixedSteps,
    Samples as Samples,
    bits_per_dim as bits_per_dim,
    classifier_free as classifier_free,
    edit as edit,
    invert as invert,
    log_density as log_density,
    sample as sample,
    sample_diffusion as sample_diffusion,
    sample_flow_map as sample_flow_map,
    sample_sde as sample_sde,
)
from .training import (
    Checkpoints as Checkpoints,
    OptimizerConfig as OptimizerConfig,
    fit as fit,
    init_state as init_state,
    make_optimizer as make_optimizer,
    make_train_step as make_train_step,
)

__version__: str
