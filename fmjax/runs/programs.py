"""Keep the compiled programs of runs, so that later calls with the same settings reuse them."""

from collections.abc import Callable

from jaxtyping import PyTree

from fmjax._jaxprs import Identity
from fmjax.runs.folder import Run
from fmjax.solvers.engine.programs import MutableError, Programs, settings_key

# The programs used last by all runs that are open in this process.
_PROGRAMS: Programs[Callable[..., PyTree]] = Programs()


def reuse_program_of_run(
    run: Run, settings: tuple[object, ...], make: Callable[[], Callable[..., PyTree]]
) -> Callable[..., PyTree]:
    """Return the program of an earlier call for the same model and settings, or make it.

    Weights, noise and conditions are arguments of a program, so that `run._replace(params=...)`
    reuses it with other weights. A program belongs to one `Run`: opening the run folder again
    compiles again.

    Args:
        run: A run; its model, config and mesh are parts of the program.
        settings: Kind of program, and everything else on which it depends. If settings can change
            without being noticed, the program is made again at each call.
        make: Makes the jitted function.
    """
    try:
        parts = Identity(run.model), Identity(run.config), run.event_shape
        key = (*parts, run.mesh, settings_key(settings))
    except MutableError:
        return make()
    program = _PROGRAMS.get(key)
    if program is None:
        program = make()
        _PROGRAMS.put(key, program)
    return program
