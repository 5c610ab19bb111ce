"""Cases that run in one process: commands with wrong arguments, files and data, wrong calls."""

import functools
import json
import threading
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from tests.fuzz.case import Case, refused
from tests.fuzz.mutations import (
    damage_bytes,
    damage_json,
    damage_lines,
    npy_header,
)
from tests.fuzz.world import config_text, copy

Make = Callable[["Dice", Path, Path], Case]


class Stratum(NamedTuple):
    """A class of cases, of which every seed has several."""

    name: str
    make: Make
    share: int


STRATA: list[Stratum] = []


def stratum(name: str, share: int = 4) -> Callable[[Make], Make]:
    """Register a class of cases; of ones that take long the share is small."""

    def register(make: Make) -> Make:
        STRATA.append(Stratum(name, make, share))
        return make

    return register


class Dice(Random):
    """Chance of one case.

    Attributes:
        turn: How many cases of its class came before.
    """

    def __init__(self, seed: str, turn: int) -> None:
        super().__init__(seed)
        self.turn = turn

    def next_of(self, options: Sequence[Any]) -> Any:
        """One of the options, of which every seed has all: the cases of a class take turns."""
        return options[self.turn % len(options)]


def case_number(seed: int, number: int, world: Path, folder: Path) -> tuple[str, Case]:
    """The case of a number: the classes take turns, as often as their shares say."""
    one = _stratum_of(number)
    before = sum(_stratum_of(each) is one for each in range(number))
    dice = Dice(f"{seed} {number}", seed + before)
    return one.name, one.make(dice, world, folder)


def name_of(number: int) -> str:
    """The name of the class of a case."""
    return _stratum_of(number).name


@functools.cache
def _turns() -> tuple[Stratum, ...]:
    return tuple(one for turn in range(12) for one in STRATA if turn < one.share)


def _stratum_of(number: int) -> Stratum:
    return _turns()[number % len(_turns())]


# --- Arguments ---------------------------------------------------------------------------------

RUN_COMMANDS = ("sample", "compare", "evaluate", "likelihood", "invert", "reflow", "export")
NUMBERS = (
    "0",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "x",
    "",
    " ",
    "None",
    "1.5",
    "0x10",
    "1_0",
    "\u0663",
    str(2**31),
    str(2**63),
    str(2**64),
    "-" + str(2**63),
    "9" * 4_400,
    "1e308",
    "true",
    "[1]",
    "1,2",
    "\ud800",
    "a\x1b[31mb\n",
)
WRONG_NUMBERS = ("x", "", "1e400x", "[1]", "1,2", "true", "0x10", "one", "--", "9" * 5_000, "1e3x")


@stratum("27: unknown options are named alone, with what was meant", 8)
def _(rng, world, folder):
    wrong, meant = rng.next_of(
        (
            ("--optimizer.lr", "--optimizer.learning-rate"),
            ("--lr", "--optimizer.learning-rate"),
            ("--optimizer.learnin-rate", "--optimizer.learning-rate"),
            ("--trainin.num-steps", "--training.num-steps"),
            ("--training.steps", "--training.num-steps"),
            ("--training-num-steps", "--training.num-steps"),
            ("--sampling.solvr", "--sampling.solver"),
            ("--optimizer.warmup", "--optimizer.warmup-steps"),
            ("--network.widht", "--network.width"),
            ("--overwrit", "--overwrite"),
        )
    )
    value = rng.choice(("3e-4", "-1", "x", "1 2"))
    words = rng.next_of(([wrong, value], [f"{wrong}={value}"], [wrong]))
    message = f"unrecognized option {wrong} (did you mean {meant}?)\n"
    return Case(["train", str(world / "toy.py"), *words], **refused(message))


@stratum("27: nothing near is suggested for nonsense")
def _(rng, world, folder):
    name = "--" + "".join(rng.choice("qxzjkv") for _ in range(rng.randrange(4, 12)))
    command = rng.choice((["train", world / "toy.py"], ["sample", world / "toy"]))
    words = [*map(str, command), name, rng.choice(NUMBERS[:12])]
    return Case(words, **refused(f"unrecognized option {name}\n"))


@stratum("27: a file that does not exist is said not to exist")
def _(rng, world, folder):
    (folder / "digits.py").write_text(config_text("x"))
    (folder / "inner").mkdir()
    name, near = rng.next_of(
        (
            ("digit.py", "digits.py"),
            ("inner/x.py", None),
            ("digts.py", "digits.py"),
            ("away/inner/digits.py", "digits.py"),
        )
    )
    command = rng.choice(("train", "study", "plan"))
    hint = f" (did you mean {near}?)" if near else ""
    return Case([command, name], **refused(f"config must exist, got {name}{hint}"))


@stratum("27: a run or a model folder that does not exist, or is none")
def _(rng, world, folder):
    (folder / "empty").mkdir()
    (folder / "file").write_text("x")
    names = ("absent", "empty", "file", "a" * 300, "absent\0x", "/proc/1/absent", "é\ud800")
    name = rng.next_of(names)
    command = rng.choice((*RUN_COMMANDS, "generate", "encode"))
    more = {"generate": ["a cat"], "encode": ["empty"]}.get(command, [])
    return Case([command, name, *more], **refused())


@stratum("17: wrong values of options of all commands", 12)
def _(rng, world, folder):
    run = str(world / rng.choice(("toy", "classes")))
    command, options = rng.choice(
        (
            (["sample", run], ("--num-samples", "--seed", "--num-steps", "--batch-size", "--rtol")),
            (["evaluate", run], ("--num-samples", "--num-projections", "--sampling.seed")),
            (["compare", run], ("--num-samples", "--num-steps", "--seed", "--guidance")),
            (["likelihood", run], ("--num-examples", "--probes", "--rtol", "--batch-size")),
            (
                ["train", str(world / "toy.py")],
                (
                    "--training.num-steps",
                    "--network.width",
                    "--optimizer.learning-rate",
                    "--training.seed",
                    "--mesh.data",
                    "--sampling.num-samples",
                ),
            ),
            (["plan", str(world / "toy.py")], ("--num-slices", "--training.num-steps")),
            (["reflow", run], ("--reflow.num-pairs", "--training.num-steps")),
        )
    )
    return Case([*command, rng.choice(options), rng.choice(WRONG_NUMBERS)], **refused())


@stratum("17: missing, doubled and stray arguments", 8)
def _(rng, world, folder):
    run, config = str(world / "toy"), str(world / "toy.py")
    words = rng.next_of(
        (
            [],
            ["trane"],
            ["--nonsense"],
            ["train"],
            ["sample"],
            ["train", "--run", "x"],
            ["train", config, "stray"],
            ["train", config, "--training.num-steps"],
            ["train", config, "--training.num-steps", "1", "2"],
            ["sample", run, "--", "x"],
            ["sample", run, "-x"],
            ["sample", run, "--classes", "a"],
            ["sample", run, "--solver"],
            ["sample", run, "--control", "no"],
            ["sample", run, "--solver", "tsit6"],
            ["train", config, "--tyro-print-completion", "x"],
            ["train", config, "--name", "a/b"],
            ["generate"],
            ["generate", run, "x"],
            ["encode", run],
            ["plan"],
            ["study", config],
            ["invert", run, "absent.png"],
            ["compare", run, "a prompt"],
            ["", ""],
            ["sample", ""],
            ["train", config, "--data", "x"],
            ["train", config, "\x1b[31m"],
        )
    )
    return Case(words, **refused())


@stratum("17: help of all commands, whatever else is wrong")
def _(rng, world, folder):
    command = rng.choice((*RUN_COMMANDS, "train", "plan"))
    path = world / ("toy.py" if command in ("train", "plan") else "toy")
    more = rng.choice(([], ["--zzz"], ["--training.num-steps", "x"]))
    words = [command, str(path), *more, "--help"]
    return Case(words, codes=(0,), says=("usage: fmjax",))


@stratum("15: settings of samples that do not go together", 8)
def _(rng, world, folder):
    options = rng.next_of(
        (
            ["--solver", "euler", "--num-steps", "None"],
            ["--rtol", "0"],
            ["--rtol", "-1"],
            ["--num-steps", "0"],
            ["--num-steps", "4", "--rtol", "1e-3"],
            ["--classes", "3"],
            ["--guidance", "2"],
            ["--num-samples", "0"],
            ["--guidance", "nan"],
            ["--shift", "0"],
            ["--prompts", "a cat"],
            ["--grid", "unifrm"],
            ["--solver", "flow_map", "--num-steps", "1"],
            ["--solver", "ddim", "--num-steps", "0"],
            ["--rate", "x"],
            ["--slots", "0"],
            ["--solver", ""],
            ["--classes", "-1"],
            ["--control", "PER_SAMPLE", "--slots", "-3"],
        )
    )
    return Case(["sample", str(world / "toy"), *options], **refused())


@stratum("23: huge numbers", 12)
def _(rng, world, folder):
    huge = str(rng.choice((2**31, 2**32, 2**53, 2**62, 2**63, 2**64, 10**12, 10**15, 10**30)))
    run, config = str(world / "toy"), str(world / "toy.py")
    most = str(rng.choice((10**12, 10**15, 2**62, 2**63, 10**30)))
    words = rng.next_of(
        (
            ["sample", run, "--num-samples", most],
            ["sample", run, "--num-samples", most, "--batch-size", most],
            ["sample", run, "--seed", str(rng.choice((2**63, 2**64, 10**30, -1)))],
            ["sample", run, "--solver", "euler", "--num-steps", most],
            ["evaluate", run, "--num-samples", most],
            ["evaluate", run, "--num-projections", most],
            ["compare", run, "--num-samples", most],
            ["compare", run, "--num-steps", most],
            ["likelihood", run, "--seed", str(2**64)],
            ["train", config, "--network.width", most],
            ["train", config, "--network.num-layers", most],
            ["train", config, "--training.batch-size", most],
            ["train", config, "--training.seed", str(rng.choice((2**63, 2**64, 10**30)))],
            ["train", config, "--training.accumulation-steps", most],
            ["train", config, "--data.num-examples", most],
            ["train", config, "--sampling.num-samples", most],
            ["train", config, "--sampling.seed", str(2**64)],
            ["train", config, "--compare.num-samples", most],
            ["train", config, "--evaluation.num-samples", most],
            ["train", config, "--mesh.data", huge],
            ["reflow", run, "--reflow.num-pairs", most],
            ["plan", config, "--num-slices", most],
        )
    )
    return Case(words, **refused())


@stratum("26: targets that cannot be written", 8)
def _(rng, world, folder):
    copy(world, "toy", folder, "run")
    run = "run"
    (folder / "o.png").mkdir()
    (folder / "n.npz").mkdir()
    (folder / "file").write_text("x")
    (folder / "full").mkdir()
    (folder / "full" / "x").write_text("x")
    words = rng.next_of(
        (
            ["sample", run, "--output", "o"],
            ["sample", run, "--output", "n"],
            ["sample", run, "--output", "file/x"],
            ["sample", run, "--output", "/proc/x"],
            ["sample", run, "--output", "a" * 300],
            ["plan", str(world / "toy.py"), "--picture", "x.txt"],
            ["plan", str(world / "toy.py"), "--json", "o.png"],
            ["plan", str(world / "toy.py"), "--picture", "o.png"],
            ["plan", str(world / "toy.py"), "--json", "file/x.json"],
            ["reflow", run, "--run", "run", "--reflow.num-pairs", "8"],
            ["reflow", run, "--run", "file"],
            ["train", str(world / "toy.py"), "--run", "file"],
            ["train", str(world / "toy.py"), "--run", "full"],
            ["train", str(world / "toy.py"), "--run", "file/x"],
            ["train", str(world / "toy.py"), "--run", "/proc/x"],
            ["train", str(world / "toy.py"), "--run", "r\udcff"],
            [
                "encode",
                str(copy(world, "sd3-pipeline-tiny", folder, "model")),
                str(world / "images"),
                "--output",
                "file",
                "--size",
                "32",
            ],
            ["encode", str(folder / "model"), str(world / "images"), "--output", "run"],
            ["generate", str(folder / "model"), "x", "--output", "x.jpg"],
            ["export", run, "--output", "full"],
        )
    )
    return Case(words, **refused())


@stratum("21: the option for compiled steps is gone")
def _(rng, world, folder):
    (folder / "step.bin").write_bytes(b"fmjax" + rng.randbytes(40))
    command = rng.choice(("train", "plan"))
    words = [command, str(world / "toy.py"), "--executable", "step.bin"]
    return Case(words, **refused("unrecognized option --executable"))


# --- Config files ------------------------------------------------------------------------------

_START = "from fmjax.config import *\ndef get_config():\n    return "
CONFIGS = (
    "import sys\nsys.exit(0)\n",
    "import sys\nsys.exit('x')\n",
    "exit()\n",
    "raise SystemExit\n",
    "def get_config():\n    raise SystemExit(0)\n",
    "def get_config(:\n",
    "\0",
    "import absent_module\n",
    "def get_config():\n    return 3\n",
    "def get_config(x):\n    return x\n",
    "get_config = 1\n",
    "",
    "def get_config():\n    return get_config()\n",
    "class X(BaseException): pass\nraise X('a')\n",
    "raise GeneratorExit\n",
    "def get_config():\n    raise ValueError('one\\ntwo')\n",
    "1/0\n",
    "from fmjax.config import Confg\n",
    f"{_START}Config(nam='x')\n",
    f"{_START}Config(name=3)\n",
    f"{_START}Config('x', training=3)\n",
    f"{_START}Config('x', training=TrainingConfig(num_steps=1.5))\n",
    f"{_START}Config('x', data=print)\n",
)


@stratum("25: config files that leave, fail or give something else", 12)
def _(rng, world, folder):
    text = rng.next_of(CONFIGS)
    (folder / "c.py").write_text(text)
    command = rng.choice(("train", "plan", "study"))
    return Case([command, "c.py"], shown=f"# c.py = {text[:60]!r}", **refused("config"))


# --- Locks and what kills leave ---------------------------------------------------------------


@stratum("1: what another writer holds is refused", 2)
def _(rng, world, folder):
    copy(world, "toy", folder, "run")
    toy = str(world / "toy.py")
    words, code = rng.next_of(
        (
            (["train", toy, "--run", "run"], 2),
            (["train", toy, "--run", "run", "--overwrite"], 2),
            (["sample", "run", "--output", "o"], 0),
            (["reflow", str(world / "toy"), "--run", "run", "--reflow.num-pairs", "8"], 2),
        )
    )

    def call():
        from fmjax._locks import lock_folder
        from fmjax.cli.main import main

        held, done = threading.Event(), threading.Event()

        def hold():
            with lock_folder(folder / "run", "run folder"):
                held.set()
                done.wait()

        other = threading.Thread(target=hold)
        other.start()
        held.wait()
        try:
            main(words)
        finally:
            done.set()
            other.join()

    return Case(call, codes=(code,), shown=f"{words} while a thread holds run", may_write=True)


@stratum("19: the same command goes on from what a kill leaves", 3)
def _(rng, world, folder):
    from fmjax._locks import temporary_name

    toy, run = str(world / "toy.py"), folder / "run"
    kind = rng.next_of(("first", "replaced", "log", "lock", "sample"))
    words = ["train", toy, "--run", "run"]
    if kind == "first":
        run.mkdir()
        temporary_name(run / "config.json").write_text("{")
        (run / "model.json").write_bytes((world / "toy" / "model.json").read_bytes())
    else:
        copy(world, "toy", folder, "run")
    if kind == "replaced":
        (run / "config.json").rename(run / ".replaced.json")
        words = rng.choice((words, [*words, "--overwrite"]))
    elif kind == "log":
        text = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(text[: -rng.randrange(1, 20)])
    elif kind == "lock":
        (run / ".fmjax.lock").write_text("process 1 on nowhere")
    elif kind == "sample":
        temporary_name(folder / "o.npz").write_bytes(b"PK")
        (folder / ".o.npz.fmjax.lock").touch()
        words = ["sample", "run", "--output", "o"]
    return Case(words, codes=(0,), shown=f"# {kind}")


# --- JSON of run folders -----------------------------------------------------------------------


@stratum("22: config.json and model.json of a run", 12)
def _(rng, world, folder):
    run = copy(world, rng.choice(("toy", "classes")), folder, "run")
    done = damage_json(rng, run / rng.choice(("config.json", "model.json")))
    command = rng.choice(("sample", "compare", "evaluate", "likelihood", "reflow"))
    # It is refused anyway, after the config is read: so that no case trains.
    return Case([command, "run", "--nonsense"], shown=f"# {done}", **refused())


@stratum("22: model.json and config.json, opened", 8)
def _(rng, world, folder):
    run = copy(world, rng.choice(("toy", "classes")), folder, "run")
    done = damage_json(rng, run / rng.choice(("config.json", "model.json", "model.json")))

    def call():
        from fmjax.runs.folder import open_run

        open_run(run)

    return Case(call, shown=f"open_run: {done}")


RESULTS = {
    "evaluation.json": ("fmjax.jobs.evaluate.evaluate", "read_evaluation"),
    "comparison.json": ("fmjax.report.comparison", "read_json"),
    "straightness.json": ("fmjax.jobs.evaluate.straightness", "read_straightness"),
    "metrics.jsonl": ("fmjax.training", "read_metrics"),
}


@stratum("22: result files of a run", 12)
def _(rng, world, folder):
    import importlib

    name = rng.next_of(tuple(RESULTS))
    file = copy(world, f"toy/{name}", folder, name)
    done = damage_lines(rng, file) if name.endswith("l") else damage_json(rng, file)
    module, reader = RESULTS[name]
    codes = (0,) if name.endswith("l") else (0, 2)  # A log with a damaged line is still read.

    def call():
        getattr(importlib.import_module(module), reader)(file)

    return Case(call, codes=codes, shown=f"{reader}: {done}")


@stratum("22: the page of a run with damaged results", 2)
def _(rng, world, folder):
    run = copy(world, "toy", folder, "run")
    names = ("evaluation.json", "comparison.json", "straightness.json", "likelihood.json")
    done = damage_json(rng, run / rng.choice(names))

    def call():
        from fmjax.jobs.report.report import report_run
        from fmjax.runs.folder import open_run

        report_run(open_run(run))

    return Case(call, shown=f"report_run: {done}", may_write=True)


@stratum("22: a damaged log does not stop a resume", 2)
def _(rng, world, folder):
    run = copy(world, "toy", folder, "run")
    done = damage_lines(rng, run / "metrics.jsonl")
    words = ["train", str(world / "toy.py"), "--run", "run"]
    return Case(words, codes=(0,), shown=f"# {done}")


@stratum("22: results that are damaged are made again", 1)
def _(rng, world, folder):
    run = copy(world, "toy", folder, "run")
    done = damage_json(rng, run / "evaluation.json")
    words = ["train", str(world / "toy.py"), "--run", "run"]
    return Case(words, codes=(0,), shown=f"# {done}")


@stratum("22: records.json, whole or damaged", 6)
def _(rng, world, folder):
    records = copy(world, "records", folder)
    done = damage_json(rng, records / "records.json")

    def call():
        from fmjax.data import open_records

        open_records(records).read(np.arange(10))

    return Case(call, shown=f"open_records: {done}")


@stratum("22: shards of records", 4)
def _(rng, world, folder):
    records = copy(world, "records", folder)
    done = damage_bytes(rng, rng.choice(sorted(records.glob("*.array_record"))))

    def call():
        from fmjax.data import open_records

        open_records(records).read(np.arange(10))

    return Case(call, shown=f"open_records: {done}")


@stratum("3: checkpoints with damaged files", 4)
def _(rng, world, folder):
    run = copy(world, "toy", folder, "run")
    files = [path for path in (run / "checkpoints").rglob("*") if path.is_file()]
    done = damage_bytes(rng, rng.choice(sorted(files)))
    return Case(["sample", "run", "--guidance", "2"], shown=f"# {done}", **refused())


# --- Released models ---------------------------------------------------------------------------

PARTS = (
    "model_index.json",
    "transformer/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer_config.json",
)


def _check(model, **settings):
    from fmjax.config.generate import GenerateConfig
    from fmjax.jobs.released.request import validate_request
    from fmjax.pretrained.folder import open_model
    from fmjax.pretrained.validate import validate_model

    found = open_model(model)
    validate_request(found, GenerateConfig(**settings))
    validate_model(found)


@stratum("22: JSON of a released model's folder", 12)
def _(rng, world, folder):
    name = rng.choice(("sd3-pipeline-tiny", "flux-dev-pipeline-tiny"))
    model = copy(world, name, folder, "model")
    done = damage_json(rng, model / rng.choice(PARTS))
    return Case(lambda: _check(model), shown=f"check_model {name}: {done}")


@stratum("22: JSON of a released model's folder, by commands", 4)
def _(rng, world, folder):
    name = rng.choice(("sd3-pipeline-tiny", "flux-dev-pipeline-tiny"))
    model = copy(world, name, folder, "model")
    path = model / rng.choice(PARTS[:3])
    wrong = (b"[]", b"null", b"x", b"[" * 100_000, b"{", b"5", b"1e400", b'""')
    path.write_bytes(rng.choice(wrong))
    command = rng.choice(
        (
            ["generate", "model", "x"],
            ["encode", "model", str(world / "images")],
            ["compare", "model", "x"],
        )
    )
    return Case(command, shown=f"# {path.name} = {path.read_bytes()[:8]!r}", **refused())


@stratum("24: tensors and tokenizers of a released model", 8)
def _(rng, world, folder):
    name = rng.choice(("sd3-pipeline-tiny", "flux-dev-pipeline-tiny"))
    model = copy(world, name, folder, "model")
    files = [
        path
        for path in sorted(model.rglob("*"))
        if path.suffix == ".safetensors"
        or path.name in ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model")
    ]
    done = damage_bytes(rng, rng.choice(files))
    return Case(lambda: _check(model), shown=f"check_model {name}: {done}")


@stratum("16: models without guidance take 0 and 1, and nothing else")
def _(rng, world, folder):
    model = copy(world, "flux-dev-pipeline-tiny", folder, "model")
    config = model / "transformer" / "config.json"
    about = json.loads(config.read_text()) | {"guidance_embeds": False}
    config.write_text(json.dumps(about))
    guidance = rng.next_of((0.0, 1.0, None, 2.0, 3.5, -1.0))
    right = guidance in (0.0, 1.0, None)

    def call():
        from fmjax.config.generate import GenerateConfig
        from fmjax.jobs.released.request import validate_request
        from fmjax.pretrained.folder import open_model

        validate_request(open_model(model), GenerateConfig(guidance=guidance))

    return Case(call, codes=(0,) if right else (2,), shown=f"schnell with guidance {guidance}")


LORAS = {
    "lora-flux-diffusers": "flux-dev-tiny",
    "lora-sd35-diffusers": "sd35-medium-tiny",
    "lora-sd3-peft": "sd3-medium-tiny",
    "lora-flux-kohya": "flux-dev-tiny",
}


@stratum("13: LoRA files, damaged", 8)
def _(rng, world, folder):
    name = rng.choice(tuple(LORAS))
    lora = copy(world, name, folder, "lora")
    files = sorted(path for path in lora.iterdir() if path.suffix in (".json", ".safetensors"))
    file = rng.choice(files)
    done = damage_json(rng, file) if file.suffix == ".json" else damage_bytes(rng, file)

    def call():
        from fmjax.pretrained.lora.files import read_lora

        read_lora(lora)

    return Case(call, shown=f"read_lora {name}: {done}")


@stratum("13: LoRA weights that are not finite, or alpha null")
def _(rng, world, folder):
    from safetensors.numpy import load_file, save_file

    kind = rng.next_of(("nan", "inf", "null"))
    name = "lora-sd3-peft" if kind == "null" else rng.choice(tuple(LORAS))
    lora = copy(world, name, folder, "lora")
    (file,) = lora.glob("*.safetensors")
    if kind == "null":
        about = json.loads((lora / "adapter_config.json").read_text()) | {"lora_alpha": None}
        (lora / "adapter_config.json").write_text(json.dumps(about))
    else:
        tensors = load_file(file)
        key = rng.choice(sorted(k for k in tensors if tensors[k].ndim == 2))
        tensors[key].flat[rng.randrange(tensors[key].size)] = float(kind)
        save_file(tensors, file)

    def call():
        from fmjax.pretrained.lora.files import read_lora

        read_lora(lora)

    return Case(call, codes=(2,) if kind != "null" else (0, 2), shown=f"read_lora {name}: {kind}")


# --- Data --------------------------------------------------------------------------------------


def _load(data, split="train"):
    """Read all of a split, as training does."""
    dataset = data.load(split)
    dataset.examples(np.arange(len(dataset)))
    return dataset


def _arrays(folder, **settings):
    from fmjax.data import ArrayData

    return _load(ArrayData(str(folder), **settings))


@stratum("24: .npz files, damaged", 8)
def _(rng, world, folder):
    data = copy(world, "arrays", folder, "data")
    done = damage_bytes(rng, data / "train.npz")
    return Case(lambda: _arrays(data), shown=f"ArrayData: {done}")


@stratum("24: .npy files, damaged", 8)
def _(rng, world, folder):
    data = copy(world, "mapped", folder, "data")
    file = data / rng.choice(("train_x.npy", "train_labels.npy"))
    if rng.random() < 0.7:
        file.write_bytes(npy_header(rng))
        done = f"{file.name} = {file.read_bytes()[:90]!r}"
    else:
        done = damage_bytes(rng, file)
    return Case(lambda: _arrays(data), shown=f"ArrayData: {done}")


@stratum("24: .npy files with a wrong header, by the command")
def _(rng, world, folder):
    data = copy(world, "mapped", folder, "data")
    (data / "train_x.npy").write_bytes(b"\x93NUMPY\x01\x00" + rng.randbytes(rng.randrange(60)))
    (folder / "c.py").write_text(config_text("x", "ArrayData('data')"))
    return Case(["train", "c.py"], **refused("train_x.npy"))


@stratum("24: labels and numbers of classes", 8)
def _(rng, world, folder):
    data = folder / "data"
    data.mkdir()
    x = np.zeros((4, 2), np.float32)
    labels = rng.next_of(
        (
            np.full(4, np.inf),
            np.full(4, np.nan),
            np.zeros(4, "V4"),
            np.zeros(4, complex),
            np.full(4, 2**60),
            np.full(4, -1),
            np.array(["cat"] * 4),
            np.zeros((4, 2), int),
            np.zeros(3, int),
            np.array(0),
            np.zeros(4, "M8[s]"),
            np.full(4, 0.5),
        )
    )
    num_classes = rng.choice((None, None, 3, 0, -1, 10**12, 2**63))
    np.savez(data / "train.npz", x=x, labels=labels)
    shown = f"labels {labels.dtype} {labels.shape}, num_classes={num_classes}"
    return Case(lambda: _arrays(data, num_classes=num_classes), codes=(2,), shown=shown)


@stratum("2: arrays that are not read, and numbers that are not finite", 6)
def _(rng, world, folder):
    data = folder / "data"
    data.mkdir()
    arrays = {"x": np.zeros((4, 3), np.float32)}
    kind = rng.next_of(("unknown", "nan", "inf", "objects", "texts", "empty", "none", "npy"))
    if kind == "unknown":
        arrays[rng.choice(("cond", "y", "label", "captions"))] = np.zeros(4, np.float32)
    elif kind in ("nan", "inf"):
        arrays["x"][rng.randrange(4), rng.randrange(3)] = float(kind)
    elif kind == "objects":
        arrays["x"] = np.array([[None] * 3] * 4)
    elif kind == "texts":
        arrays["x"] = np.array([["a"] * 3] * 4)
    elif kind == "empty":
        arrays["x"] = np.zeros((0, 3), np.float32)
    elif kind == "none":
        arrays = {"y": arrays["x"]}
    np.savez(data / "train.npz", **arrays)
    if kind == "npy":  # A .npy file under the name of a .npz.
        np.save(data / "x.npy", arrays["x"])
        (data / "x.npy").replace(data / "train.npz")
    return Case(lambda: _arrays(data), codes=(2,), shown=f"ArrayData: {kind}")


@stratum("24: idx files, damaged", 6)
def _(rng, world, folder):
    import gzip

    data = copy(world, "idx", folder, "data")
    file = data / rng.choice(("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"))
    if rng.random() < 0.5:
        done = damage_bytes(rng, file)
    else:
        plain = folder / "plain"
        plain.write_bytes(gzip.decompress(file.read_bytes()))
        done = damage_bytes(rng, plain)
        if plain.is_file():
            file.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))

    def call():
        from fmjax.data import IdxData

        _load(IdxData("mnist", folder=str(data)))

    return Case(call, shown=f"IdxData: {done}")


def _captions(folder, split="train", **settings):
    from fmjax.data import CaptionedImages

    return _load(CaptionedImages(str(folder), 8, 4, **settings), split)


@stratum("24: pictures, damaged", 6)
def _(rng, world, folder):
    images = copy(world, "images", folder, "data")
    done = damage_bytes(rng, images / f"{rng.randrange(8)}.png")
    return Case(lambda: _captions(images), shown=f"CaptionedImages: {done}")


@stratum("24: captions and lists, damaged", 6)
def _(rng, world, folder):
    images = copy(world, "images", folder, "data")
    if rng.random() < 0.3:
        done = damage_bytes(rng, images / f"{rng.randrange(8)}.txt")
    else:
        lines = [{"file_name": f"{n}.png", "text": f"a cat {n}"} for n in range(8)]
        for number in range(8):
            (images / f"{number}.txt").unlink()
        file = images / "metadata.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        done = damage_lines(rng, file) if rng.random() < 0.7 else damage_bytes(rng, file)
    return Case(lambda: _captions(images), shown=f"CaptionedImages: {done}")


@stratum("2, 14: lists that lead elsewhere, links, lists of other kinds", 8)
def _(rng, world, folder):
    images = copy(world, "images", folder, "data")
    texts = {n: (images / f"{n}.txt").read_text() for n in range(8)}
    for number in texts:
        (images / f"{number}.txt").unlink()
    kind = rng.choice(("absolute", "above", "csv", "caption", "links", "loop", "unicode", "below"))
    names, codes, wanted = {n: f"{n}.png" for n in texts}, (0,), 8
    if kind in ("absolute", "above"):
        names[3] = str(images / "3.png") if kind == "absolute" else "../data/3.png"
        codes = (2,)
    if kind == "unicode":
        for number in texts:
            names[number] = unicodedata.normalize("NFC", f"é{number}.png")
            nfd = unicodedata.normalize("NFD", names[number])
            (images / f"{number}.png").rename(images / nfd)
    if kind in ("links", "below"):
        inner = images if kind == "below" else folder / "blobs"
        inner = inner / "inner"
        inner.mkdir(parents=True)
        for number in texts:
            (images / f"{number}.png").rename(inner / f"{number}.png")
        if kind == "links":
            (images / "inner").symlink_to(inner)
        names = {n: f"inner/{n}.png" for n in texts}
    if kind == "loop":
        (images / "again").symlink_to(images)
    if kind == "csv":
        lines = ["file_name,text", *(f'{names[n]},"{text}, x"' for n, text in texts.items())]
        (images / "metadata.csv").write_text("\n".join(lines) + "\n")
    elif kind == "caption":
        for number, text in texts.items():
            (images / f"{number}.caption").write_text(text)
    else:
        lines = [json.dumps({"file_name": names[n], "text": text}) for n, text in texts.items()]
        (images / "metadata.jsonl").write_text("\n".join(lines) + "\n")

    def call():
        found = sum(_size(images, split) for split in ("train", "test"))
        assert found == wanted, f"{found} of {wanted} examples"

    return Case(call, codes=codes, shown=f"CaptionedImages: {kind}")


def _size(images, split):
    from fmjax.data.dataset import NoSuchSplit

    try:
        return len(_captions(images, split))
    except NoSuchSplit:
        return 0


@stratum("4: words of other scripts, of emoji and of signs")
def _(rng, world, folder):
    pair = rng.next_of(
        (
            ("か", "が"),
            ("и", "й"),
            ("🐱", "🐶"),
            ("c++", "c#"),
            ("c", "c++"),
            ("क", "कि"),
            ("!!", "🎉"),
        )
    )

    def call():
        from fmjax.data.tokenizer import TokenizerConfig, train_tokenizer

        tokenizer = train_tokenizer(list(pair), TokenizerConfig())
        one, two = tokenizer.encode(list(pair))
        assert one.tolist() != two.tolist(), f"{pair} are one word"

    return Case(call, shown=f"tokenizer: {pair}")


@stratum("22: tokenizer.json of a run")
def _(rng, world, folder):
    from fmjax.data.tokenizer import TokenizerConfig, train_tokenizer

    file = folder / "tokenizer.json"
    tokenizer = train_tokenizer(["a red cat", "a blue dog"], TokenizerConfig())
    file.write_text(tokenizer.to_json())
    done = damage_json(rng, file)

    def call():
        from fmjax.data import read_word_tokenizer

        read_word_tokenizer(file)

    return Case(call, shown=f"read_word_tokenizer: {done}")


# --- Names -------------------------------------------------------------------------------------


@stratum("3: names that are not UTF-8")
def _(rng, world, folder):
    name = rng.choice(("r\udcff", "\udc80x", "r\ud800"))
    words = rng.next_of(
        (
            ["train", str(world / "toy.py"), "--run", name],
            ["reflow", str(world / "toy"), "--run", name],
            ["sample", name],
            ["train", name + ".py"],
        )
    )
    return Case(words, **refused())


# --- Python ------------------------------------------------------------------------------------


@stratum("15: wrong points, fields, keys and conditions", 12)
def _(rng, world, folder):
    from tests import test_inputs

    name = rng.choice(tuple(test_inputs.FUNCTIONS))
    fn, kind = test_inputs.FUNCTIONS[name], rng.choice(("points", "field", "cond", "keys"))
    good = (test_inputs.velocity, test_inputs.X, test_inputs.KEYS, None)
    if kind == "keys" and name not in test_inputs.KEYED:
        kind = "points"
    table, place = {
        "points": (test_inputs.POINTS, 1),
        "field": (test_inputs.VELOCITIES, 0),
        "cond": (test_inputs.CONDITIONS, 3),
        "keys": (test_inputs.WRONG_KEYS, 2),
    }[kind]
    wrong = rng.choice(tuple(table))
    arguments = [*good[:place], table[wrong][0], *good[place + 1 :]]
    return Case(lambda: fn(*arguments), codes=(2,), shown=f"{name}: {kind} {wrong}")


@stratum("5 to 12, 28: values against closed forms", 6)
def _(rng, world, folder):
    from tests.fuzz.values import CHECKS

    check = rng.next_of(CHECKS)
    return Case(lambda: check(rng), codes=(0,), shown=f"{check.__name__}, {check.__doc__}")


@stratum("0: right commands", 2)
def _(rng, world, folder):
    copy(world, "toy", folder, "run")
    words = rng.next_of(
        (
            ["sample", "run", "--num-samples", "8", "--seed", str(rng.randrange(9))],
            ["sample", "run", "--num-samples", "4", "--output", "o"],
            ["train", str(world / "toy.py"), "--run", "run"],
            ["--version"],
            ["--help"],
        )
    )
    return Case(words, codes=(0,))
