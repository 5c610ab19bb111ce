"""fmjax trains and samples flow-matching models in JAX, on TPU and GPU.

The public names are listed in `__init__.pyi`. Each is imported on first use, so `import fmjax`
costs little more than `import jax`. All other names are in subpackages; `fmjax.config` has
everything that a config file needs.

    from fmjax import AffinePath, DiTConfig, flow_matching_objective, make_network, sample
"""

import lazy_loader

from fmjax._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
