"""Benchmark of posteriors learned by `configs/posterior.py`, against the exact posteriors.

Trains the linear-Gaussian simulator and two moons, or opens their runs if they are complete. Then
it samples the posteriors of new observations and compares the samples with as many exact ones by
the classifier two-sample test (`fmjax.metrics.c2st`, settings of the sbibm benchmark). Run:

    python benchmarks/posterior.py
    python benchmarks/posterior.py --simulators linear_gaussian --num-steps 3000 --folder runs

The last line is one JSON object: the accuracy for each observation and their mean, the CPU time of
`fmjax train` and, for the linear-Gaussian simulator, errors of the mean, the covariance and the
log-density. The errors of the mean and the covariance are in the coordinates in which the exact
posterior is N(0, I).
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
from _measure import report

import fmjax
from fmjax.config import user_classes
from fmjax.metrics import c2st
from fmjax.runs.folder import Run
from fmjax.runs.load_config import load_config

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "posterior.py"
sys.path.insert(0, str(ROOT))
from tests.simulators import LinearGaussian, TwoMoons  # noqa: E402

SIMULATORS = {"linear_gaussian": LinearGaussian(), "two_moons": TwoMoons()}


def main() -> None:
    """Measure all requested simulators and print the results."""
    parser = argparse.ArgumentParser(description="Compare learned posteriors with exact ones.")
    parser.add_argument("--simulators", nargs="+", choices=SIMULATORS, default=[*SIMULATORS])
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--num-steps", type=int, help="training steps (default: of the config)")
    parser.add_argument("--num-samples", type=int, default=10_000)
    parser.add_argument("--num-observations", type=int, default=10)
    args = parser.parse_args()
    results = {}
    for name in args.simulators:
        run, seconds = train(name, args.folder / name, args.num_steps)
        posterior = fmjax.Posterior(run, tolerance=1e-4)
        result = measure(name, posterior, args.num_samples, args.num_observations)
        results |= {f"{name}_{key}": value for key, value in result.items()}
        results |= {f"{name}_train_cpu_seconds": seconds, f"{name}_steps": run.step}
    report({"num_samples": args.num_samples, **results})


def train(name: str, folder: Path, num_steps: int | None) -> tuple[Run, float]:
    """Run `fmjax train` for a simulator, and return the run and the CPU time in seconds."""
    command = [sys.executable, "-m", "fmjax.cli", "train", str(CONFIG), "--run", str(folder)]
    command += ["--data.simulator", name]
    command += [] if num_steps is None else ["--training.num-steps", str(num_steps)]
    start = _cpu_seconds()
    subprocess.run(command, check=True)
    seconds = _cpu_seconds() - start
    return fmjax.open_run(folder, classes=list(user_classes(load_config(CONFIG)))), seconds


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(
    name: str, posterior: fmjax.Posterior, num_samples: int, num_observations: int
) -> dict[str, object]:
    """Compare a posterior with the exact one for some new observations."""
    simulator, generator = SIMULATORS[name], np.random.default_rng(7)
    theta = simulator.sample_prior(generator, num_observations)
    observations = simulator.simulate(generator, theta)
    accuracies, errors = [], []
    for i in range(num_observations):
        exact = simulator.sample_posterior(generator, num_samples, observations[i : i + 1])[0]
        samples = posterior.sample(num_samples, observations[i], seed=i)
        accuracies.append(c2st(exact, samples))
        print(f"{name}: observation {i + 1}: C2ST {accuracies[-1]:.4f}", flush=True)
        if isinstance(simulator, LinearGaussian):
            nats = posterior.log_prob(exact[:500], observations[i])
            errors.append(gaussian_errors(simulator, observations[i], samples, exact[:500], nats))
    worst = {key: max(error[key] for error in errors) for key in (errors[0] if errors else ())}
    return {"c2st": float(np.mean(accuracies)), "c2st_each": accuracies, **worst}


def gaussian_errors(
    simulator: LinearGaussian,
    observation: np.ndarray,
    samples: np.ndarray,
    theta: np.ndarray,
    nats: np.ndarray,
) -> dict[str, float]:
    """Return the largest errors of mean and covariance, and the rms error of log-densities."""
    white = np.linalg.solve(
        np.linalg.cholesky(simulator.covariance()), (samples - simulator.mean(observation)).T
    )
    exact = simulator.log_density(theta[None], observation[None])[0]
    return {
        "mean_error": float(np.abs(white.mean(axis=1)).max()),
        "covariance_error": float(np.abs(np.cov(white) - np.eye(len(white))).max()),
        "log_density_error": float(np.sqrt(np.mean((nats - exact) ** 2))),
    }


if __name__ == "__main__":
    main()
