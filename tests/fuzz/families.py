"""In-process fuzz cases: commands and function calls with invalid arguments, files and data."""

import functools
import json
import threading
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from tests.fuzz.case import Case, expect_refusal
from tests.fuzz.mutations import damage_bytes, damage_json, damage_lines, npy_header
from tests.fuzz.world import config_text, copy

MakeCase = Callable[["CaseRandom", Path, Path], Case]


class Family(NamedTuple):
    """A family of similar cases.

    Attributes:
        name: Short description of the input.
        make: Makes a case from a random generator, the fixtures and an empty folder.
        share: Number of cases in each round over all families.
    """

    name: str
    make: MakeCase
    share: int


FAMILIES: list[Family] = []


def family(name: str, share: int = 4) -> Callable[[MakeCase], MakeCase]:
    """Register a family of cases; slow families have a small share."""

    def register(make: MakeCase) -> MakeCase:
        FAMILIES.append(Family(name, make, share))
        return make

    return register


class CaseRandom(Random):
    """Random generator of one case.

    Attributes:
        index: Seed plus the number of earlier cases of the same family.
    """

    def __init__(self, seed: str, index: int) -> None:
        super().__init__(seed)
        self.index = index

    def in_turn(self, options: Sequence[Any]) -> Any:
        """Return one option; successive cases of a family get successive options."""
        return options[self.index % len(options)]


def make_case(seed: int, number: int, fixtures: Path, folder: Path) -> tuple[str, Case]:
    """Return the name of the family of case `number`, and the case."""
    selected = _family_of(number)
    num_earlier = sum(_family_of(earlier) is selected for earlier in range(number))
    rng = CaseRandom(f"{seed} {number}", seed + num_earlier)
    return selected.name, selected.make(rng, fixtures, folder)


def family_name(number: int) -> str:
    """Return the name of the family of case `number`."""
    return _family_of(number).name


@functools.cache
def _round() -> tuple[Family, ...]:
    """One round of cases, in which each family occurs as often as its share."""
    return tuple(entry for turn in range(12) for entry in FAMILIES if turn < entry.share)


def _family_of(number: int) -> Family:
    return _round()[number % len(_round())]


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


@family("unknown option similar to an existing one", 8)
def _(rng, fixtures, folder):
    option, similar = rng.in_turn(
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
    arguments = rng.in_turn(([option, value], [f"{option}={value}"], [option]))
    message = f"unrecognized option {option} (did you mean {similar}?)\n"
    return Case(["train", str(fixtures / "toy.py"), *arguments], **expect_refusal(message))


@family("unknown option similar to no other")
def _(rng, fixtures, folder):
    option = "--" + "".join(rng.choice("qxzjkv") for _ in range(rng.randrange(4, 12)))
    command = rng.choice((["train", fixtures / "toy.py"], ["sample", fixtures / "toy"]))
    arguments = [*map(str, command), option, rng.choice(NUMBERS[:12])]
    return Case(arguments, **expect_refusal(f"unrecognized option {option}\n"))


@family("missing config file")
def _(rng, fixtures, folder):
    (folder / "digits.py").write_text(config_text("x"))
    (folder / "inner").mkdir()
    name, similar = rng.in_turn(
        (
            ("digit.py", "digits.py"),
            ("inner/x.py", None),
            ("digts.py", "digits.py"),
            ("away/inner/digits.py", "digits.py"),
        )
    )
    command = rng.choice(("train", "study", "plan"))
    hint = f" (did you mean {similar}?)" if similar else ""
    return Case([command, name], **expect_refusal(f"config must exist, got {name}{hint}"))


@family("missing or invalid run or model folder")
def _(rng, fixtures, folder):
    (folder / "empty").mkdir()
    (folder / "file").write_text("x")
    names = ("absent", "empty", "file", "a" * 300, "absent\0x", "/proc/1/absent", "é\ud800")
    name = rng.in_turn(names)
    command = rng.choice((*RUN_COMMANDS, "generate", "encode"))
    inputs = {"generate": ["a cat"], "encode": ["empty"]}.get(command, [])
    return Case([command, name, *inputs], **expect_refusal())


@family("invalid value of an option", 12)
def _(rng, fixtures, folder):
    run = str(fixtures / rng.choice(("toy", "classes")))
    command, options = rng.choice(
        (
            (["sample", run], ("--num-samples", "--seed", "--num-steps", "--batch-size", "--rtol")),
            (["evaluate", run], ("--num-samples", "--num-projections", "--sampling.seed")),
            (["compare", run], ("--num-samples", "--num-steps", "--seed", "--guidance")),
            (["likelihood", run], ("--num-examples", "--probes", "--rtol", "--batch-size")),
            (
                ["train", str(fixtures / "toy.py")],
                (
                    "--training.num-steps",
                    "--network.width",
                    "--optimizer.learning-rate",
                    "--training.seed",
                    "--mesh.data",
                    "--sampling.num-samples",
                ),
            ),
            (["plan", str(fixtures / "toy.py")], ("--num-slices", "--training.num-steps")),
            (["reflow", run], ("--reflow.num-pairs", "--training.num-steps")),
        )
    )
    return Case([*command, rng.choice(options), rng.choice(WRONG_NUMBERS)], **expect_refusal())


@family("missing, repeated and unexpected arguments", 8)
def _(rng, fixtures, folder):
    run, config = str(fixtures / "toy"), str(fixtures / "toy.py")
    arguments = rng.in_turn(
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
    return Case(arguments, **expect_refusal())


@family("--help after invalid arguments")
def _(rng, fixtures, folder):
    command = rng.choice((*RUN_COMMANDS, "train", "plan"))
    file = fixtures / ("toy.py" if command in ("train", "plan") else "toy")
    invalid = rng.choice(([], ["--zzz"], ["--training.num-steps", "x"]))
    arguments = [command, str(file), *invalid, "--help"]
    return Case(arguments, codes=(0,), messages=("usage: fmjax",))


@family("invalid or incompatible sampling options", 8)
def _(rng, fixtures, folder):
    options = rng.in_turn(
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
    return Case(["sample", str(fixtures / "toy"), *options], **expect_refusal())


@family("huge numbers", 12)
def _(rng, fixtures, folder):
    huge = str(rng.choice((2**31, 2**32, 2**53, 2**62, 2**63, 2**64, 10**12, 10**15, 10**30)))
    run, config = str(fixtures / "toy"), str(fixtures / "toy.py")
    too_large = str(rng.choice((10**12, 10**15, 2**62, 2**63, 10**30)))
    arguments = rng.in_turn(
        (
            ["sample", run, "--num-samples", too_large],
            ["sample", run, "--num-samples", too_large, "--batch-size", too_large],
            ["sample", run, "--seed", str(rng.choice((2**63, 2**64, 10**30, -1)))],
            ["sample", run, "--solver", "euler", "--num-steps", too_large],
            ["evaluate", run, "--num-samples", too_large],
            ["evaluate", run, "--num-projections", too_large],
            ["compare", run, "--num-samples", too_large],
            ["compare", run, "--num-steps", too_large],
            ["likelihood", run, "--seed", str(2**64)],
            ["train", config, "--network.width", too_large],
            ["train", config, "--network.num-layers", too_large],
            ["train", config, "--training.batch-size", too_large],
            ["train", config, "--training.seed", str(rng.choice((2**63, 2**64, 10**30)))],
            ["train", config, "--training.accumulation-steps", too_large],
            ["train", config, "--data.num-examples", too_large],
            ["train", config, "--sampling.num-samples", too_large],
            ["train", config, "--sampling.seed", str(2**64)],
            ["train", config, "--compare.num-samples", too_large],
            ["train", config, "--evaluation.num-samples", too_large],
            ["train", config, "--mesh.data", huge],
            ["reflow", run, "--reflow.num-pairs", too_large],
            ["plan", config, "--num-slices", too_large],
        )
    )
    return Case(arguments, **expect_refusal())


@family("outputs that cannot be written", 8)
def _(rng, fixtures, folder):
    copy(fixtures, "toy", folder, "run")
    run = "run"
    (folder / "o.png").mkdir()
    (folder / "n.npz").mkdir()
    (folder / "file").write_text("x")
    (folder / "full").mkdir()
    (folder / "full" / "x").write_text("x")
    arguments = rng.in_turn(
        (
            ["sample", run, "--output", "o"],
            ["sample", run, "--output", "n"],
            ["sample", run, "--output", "file/x"],
            ["sample", run, "--output", "/proc/x"],
            ["sample", run, "--output", "a" * 300],
            ["plan", str(fixtures / "toy.py"), "--picture", "x.txt"],
            ["plan", str(fixtures / "toy.py"), "--json", "o.png"],
            ["plan", str(fixtures / "toy.py"), "--picture", "o.png"],
            ["plan", str(fixtures / "toy.py"), "--json", "file/x.json"],
            ["reflow", run, "--run", "run", "--reflow.num-pairs", "8"],
            ["reflow", run, "--run", "file"],
            ["train", str(fixtures / "toy.py"), "--run", "file"],
            ["train", str(fixtures / "toy.py"), "--run", "full"],
            ["train", str(fixtures / "toy.py"), "--run", "file/x"],
            ["train", str(fixtures / "toy.py"), "--run", "/proc/x"],
            ["train", str(fixtures / "toy.py"), "--run", "r\udcff"],
            [
                "encode",
                str(copy(fixtures, "sd3-pipeline-tiny", folder, "model")),
                str(fixtures / "images"),
                "--output",
                "file",
                "--size",
                "32",
            ],
            ["encode", str(folder / "model"), str(fixtures / "images"), "--output", "run"],
            ["generate", str(folder / "model"), "x", "--output", "x.jpg"],
            ["export", run, "--output", "full"],
        )
    )
    return Case(arguments, **expect_refusal())


@family("removed option --executable")
def _(rng, fixtures, folder):
    (folder / "step.bin").write_bytes(b"fmjax" + rng.randbytes(40))
    command = rng.choice(("train", "plan"))
    arguments = [command, str(fixtures / "toy.py"), "--executable", "step.bin"]
    return Case(arguments, **expect_refusal("unrecognized option --executable"))


# --- Config files ------------------------------------------------------------------------------

_CONFIG_START = "from fmjax.config import *\ndef get_config():\n    return "
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
    f"{_CONFIG_START}Config(nam='x')\n",
    f"{_CONFIG_START}Config(name=3)\n",
    f"{_CONFIG_START}Config('x', training=3)\n",
    f"{_CONFIG_START}Config('x', training=TrainingConfig(num_steps=1.5))\n",
    f"{_CONFIG_START}Config('x', data=print)\n",
)


@family("config files that exit, raise or return another type", 12)
def _(rng, fixtures, folder):
    text = rng.in_turn(CONFIGS)
    (folder / "c.py").write_text(text)
    command = rng.choice(("train", "plan", "study"))
    return Case(
        [command, "c.py"], description=f"# c.py = {text[:60]!r}", **expect_refusal("config")
    )


# --- Locks and killed commands -----------------------------------------------------------------


@family("locked run folder", 2)
def _(rng, fixtures, folder):
    copy(fixtures, "toy", folder, "run")
    toy = str(fixtures / "toy.py")
    arguments, code = rng.in_turn(
        (
            (["train", toy, "--run", "run"], 2),
            (["train", toy, "--run", "run", "--overwrite"], 2),
            (["sample", "run", "--output", "o"], 0),
            (["reflow", str(fixtures / "toy"), "--run", "run", "--reflow.num-pairs", "8"], 2),
        )
    )

    def call():
        from fmjax._locks import lock_folder
        from fmjax.cli.main import main

        locked, finished = threading.Event(), threading.Event()

        def hold_lock():
            with lock_folder(folder / "run", "run folder"):
                locked.set()
                finished.wait()

        writer = threading.Thread(target=hold_lock)
        writer.start()
        locked.wait()
        try:
            main(arguments)
        finally:
            finished.set()
            writer.join()

    return Case(
        call, codes=(code,), description=f"{arguments} while a thread holds run", may_write=True
    )


@family("same command after a kill", 3)
def _(rng, fixtures, folder):
    from fmjax._locks import temporary_name

    toy, run = str(fixtures / "toy.py"), folder / "run"
    variant = rng.in_turn(("first", "replaced", "log", "lock", "sample"))
    arguments = ["train", toy, "--run", "run"]
    if variant == "first":
        run.mkdir()
        temporary_name(run / "config.json").write_text("{")
        (run / "model.json").write_bytes((fixtures / "toy" / "model.json").read_bytes())
    else:
        copy(fixtures, "toy", folder, "run")
    if variant == "replaced":
        (run / "config.json").rename(run / ".replaced.json")
        arguments = rng.choice((arguments, [*arguments, "--overwrite"]))
    elif variant == "log":
        text = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(text[: -rng.randrange(1, 20)])
    elif variant == "lock":
        (run / ".fmjax.lock").write_text("process 1 on nowhere")
    elif variant == "sample":
        temporary_name(folder / "o.npz").write_bytes(b"PK")
        (folder / ".o.npz.fmjax.lock").touch()
        arguments = ["sample", "run", "--output", "o"]
    return Case(arguments, codes=(0,), description=f"# {variant}")


# --- JSON of run folders -----------------------------------------------------------------------


@family("damaged config.json or model.json of a run, commands", 12)
def _(rng, fixtures, folder):
    run = copy(fixtures, rng.choice(("toy", "classes")), folder, "run")
    damage = damage_json(rng, run / rng.choice(("config.json", "model.json")))
    command = rng.choice(("sample", "compare", "evaluate", "likelihood", "reflow"))
    # The unknown option is refused after the config is read, so no case trains.
    return Case([command, "run", "--nonsense"], description=f"# {damage}", **expect_refusal())


@family("damaged config.json or model.json of a run, open_run", 8)
def _(rng, fixtures, folder):
    run = copy(fixtures, rng.choice(("toy", "classes")), folder, "run")
    damage = damage_json(rng, run / rng.choice(("config.json", "model.json", "model.json")))

    def call():
        from fmjax.runs.folder import open_run

        open_run(run)

    return Case(call, description=f"open_run: {damage}")


RESULTS = {
    "evaluation.json": ("fmjax.jobs.evaluate.evaluate", "read_evaluation"),
    "comparison.json": ("fmjax.report.comparison", "read_json"),
    "straightness.json": ("fmjax.jobs.evaluate.straightness", "read_straightness"),
    "metrics.jsonl": ("fmjax.training", "read_metrics"),
}


@family("damaged result files of a run", 12)
def _(rng, fixtures, folder):
    import importlib

    name = rng.in_turn(tuple(RESULTS))
    file = copy(fixtures, f"toy/{name}", folder, name)
    damage = damage_lines(rng, file) if name.endswith("l") else damage_json(rng, file)
    module, reader = RESULTS[name]
    # Damaged lines of a log are skipped.
    codes = (0,) if name.endswith("l") else (0, 2)

    def call():
        getattr(importlib.import_module(module), reader)(file)

    return Case(call, codes=codes, description=f"{reader}: {damage}")


@family("report of a run with damaged results", 2)
def _(rng, fixtures, folder):
    run = copy(fixtures, "toy", folder, "run")
    names = ("evaluation.json", "comparison.json", "straightness.json", "likelihood.json")
    damage = damage_json(rng, run / rng.choice(names))

    def call():
        from fmjax.jobs.report.report import report_run
        from fmjax.runs.folder import open_run

        report_run(open_run(run))

    return Case(call, description=f"report_run: {damage}", may_write=True)


def resume_after_damage(fixtures, folder, damage_file):
    """Resume a copy of a run after `damage_file(run)`, which returns what it damaged."""
    damage = damage_file(copy(fixtures, "toy", folder, "run"))
    arguments = ["train", str(fixtures / "toy.py"), "--run", "run"]
    return Case(arguments, codes=(0,), description=f"# {damage}")


@family("resume with a damaged log", 2)
def _(rng, fixtures, folder):
    return resume_after_damage(
        fixtures, folder, lambda run: damage_lines(rng, run / "metrics.jsonl")
    )


@family("resume with a damaged evaluation", 1)
def _(rng, fixtures, folder):
    return resume_after_damage(
        fixtures, folder, lambda run: damage_json(rng, run / "evaluation.json")
    )


@family("damaged records.json", 6)
def _(rng, fixtures, folder):
    records = copy(fixtures, "records", folder)
    damage = damage_json(rng, records / "records.json")

    def call():
        from fmjax.data import open_records

        open_records(records).read(np.arange(10))

    return Case(call, description=f"open_records: {damage}")


@family("damaged record shards", 4)
def _(rng, fixtures, folder):
    records = copy(fixtures, "records", folder)
    damage = damage_bytes(rng, rng.choice(sorted(records.glob("*.array_record"))))

    def call():
        from fmjax.data import open_records

        open_records(records).read(np.arange(10))

    return Case(call, description=f"open_records: {damage}")


@family("damaged checkpoints", 4)
def _(rng, fixtures, folder):
    run = copy(fixtures, "toy", folder, "run")
    files = [file for file in (run / "checkpoints").rglob("*") if file.is_file()]
    damage = damage_bytes(rng, rng.choice(sorted(files)))
    return Case(["sample", "run", "--guidance", "2"], description=f"# {damage}", **expect_refusal())


# --- Released models ---------------------------------------------------------------------------

MODEL_JSON_FILES = (
    "model_index.json",
    "transformer/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer_config.json",
)


def _validate(model, **settings):
    from fmjax.config.generate import GenerateConfig
    from fmjax.jobs.released.request import validate_request
    from fmjax.pretrained.folder import open_model
    from fmjax.pretrained.validate import validate_model

    released = open_model(model)
    validate_request(released, GenerateConfig(**settings))
    validate_model(released)


@family("damaged JSON of a released model", 12)
def _(rng, fixtures, folder):
    name = rng.choice(("sd3-pipeline-tiny", "flux-dev-pipeline-tiny"))
    model = copy(fixtures, name, folder, "model")
    damage = damage_json(rng, model / rng.choice(MODEL_JSON_FILES))
    return Case(lambda: _validate(model), description=f"validate_model {name}: {damage}")


@family("damaged JSON of a released model, commands", 4)
def _(rng, fixtures, folder):
    name = rng.choice(("sd3-pipeline-tiny", "flux-dev-pipeline-tiny"))
    model = copy(fixtures, name, folder, "model")
    file = model / rng.choice(MODEL_JSON_FILES[:3])
    contents = (b"[]", b"null", b"x", b"[" * 100_000, b"{", b"5", b"1e400", b'""')
    file.write_bytes(rng.choice(contents))
    command = rng.choice(
        (
            ["generate", "model", "x"],
            ["encode", "model", str(fixtures / "images")],
            ["compare", "model", "x"],
        )
    )
    return Case(
        command, description=f"# {file.name} = {file.read_bytes()[:8]!r}", **expect_refusal()
    )


@family("damaged tensors or tokenizers of a released model", 8)
def _(rng, fixtures, folder):
    name = rng.choice(("sd3-pipeline-tiny", "flux-dev-pipeline-tiny"))
    model = copy(fixtures, name, folder, "model")
    files = [
        file
        for file in sorted(model.rglob("*"))
        if file.suffix == ".safetensors"
        or file.name in ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model")
    ]
    damage = damage_bytes(rng, rng.choice(files))
    return Case(lambda: _validate(model), description=f"validate_model {name}: {damage}")


@family("guidance of a model without guidance input")
def _(rng, fixtures, folder):
    model = copy(fixtures, "flux-dev-pipeline-tiny", folder, "model")
    config = model / "transformer" / "config.json"
    fields = json.loads(config.read_text()) | {"guidance_embeds": False}
    config.write_text(json.dumps(fields))
    guidance = rng.in_turn((0.0, 1.0, None, 2.0, 3.5, -1.0))
    valid = guidance in (0.0, 1.0, None)

    def call():
        from fmjax.config.generate import GenerateConfig
        from fmjax.jobs.released.request import validate_request
        from fmjax.pretrained.folder import open_model

        validate_request(open_model(model), GenerateConfig(guidance=guidance))

    return Case(
        call,
        codes=(0,) if valid else (2,),
        description=f"FLUX without guidance_embeds, guidance {guidance}",
    )


LORA_MODELS = {
    "lora-flux-diffusers": "flux-dev-tiny",
    "lora-sd35-diffusers": "sd35-medium-tiny",
    "lora-sd3-peft": "sd3-medium-tiny",
    "lora-flux-kohya": "flux-dev-tiny",
}


@family("damaged LoRA files", 8)
def _(rng, fixtures, folder):
    name = rng.choice(tuple(LORA_MODELS))
    lora = copy(fixtures, name, folder, "lora")
    files = sorted(file for file in lora.iterdir() if file.suffix in (".json", ".safetensors"))
    file = rng.choice(files)
    damage = damage_json(rng, file) if file.suffix == ".json" else damage_bytes(rng, file)

    def call():
        from fmjax.pretrained.lora.files import read_lora

        read_lora(lora)

    return Case(call, description=f"read_lora {name}: {damage}")


@family("LoRA weights that are not finite or alpha null")
def _(rng, fixtures, folder):
    from safetensors.numpy import load_file, save_file

    variant = rng.in_turn(("nan", "inf", "null"))
    name = "lora-sd3-peft" if variant == "null" else rng.choice(tuple(LORA_MODELS))
    lora = copy(fixtures, name, folder, "lora")
    (file,) = lora.glob("*.safetensors")
    if variant == "null":
        fields = json.loads((lora / "adapter_config.json").read_text()) | {"lora_alpha": None}
        (lora / "adapter_config.json").write_text(json.dumps(fields))
    else:
        tensors = load_file(file)
        key = rng.choice(sorted(k for k in tensors if tensors[k].ndim == 2))
        tensors[key].flat[rng.randrange(tensors[key].size)] = float(variant)
        save_file(tensors, file)

    def call():
        from fmjax.pretrained.lora.files import read_lora

        read_lora(lora)

    return Case(
        call,
        codes=(2,) if variant != "null" else (0, 2),
        description=f"read_lora {name}: {variant}",
    )


# --- Data --------------------------------------------------------------------------------------


def _load(data, split="train"):
    """Read all examples of a split, as training does."""
    dataset = data.load(split)
    dataset.examples(np.arange(len(dataset)))
    return dataset


def _arrays(folder, **settings):
    from fmjax.data import ArrayData

    return _load(ArrayData(str(folder), **settings))


@family("damaged .npz files", 8)
def _(rng, fixtures, folder):
    data = copy(fixtures, "arrays", folder, "data")
    damage = damage_bytes(rng, data / "train.npz")
    return Case(lambda: _arrays(data), description=f"ArrayData: {damage}")


@family("damaged .npy files", 8)
def _(rng, fixtures, folder):
    data = copy(fixtures, "mapped", folder, "data")
    file = data / rng.choice(("train_x.npy", "train_labels.npy"))
    if rng.random() < 0.7:
        file.write_bytes(npy_header(rng))
        damage = f"{file.name} = {file.read_bytes()[:90]!r}"
    else:
        damage = damage_bytes(rng, file)
    return Case(lambda: _arrays(data), description=f"ArrayData: {damage}")


@family("damaged .npy header, commands")
def _(rng, fixtures, folder):
    data = copy(fixtures, "mapped", folder, "data")
    (data / "train_x.npy").write_bytes(b"\x93NUMPY\x01\x00" + rng.randbytes(rng.randrange(60)))
    (folder / "c.py").write_text(config_text("x", "ArrayData('data')"))
    return Case(["train", "c.py"], **expect_refusal("train_x.npy"))


@family("invalid labels and num_classes", 8)
def _(rng, fixtures, folder):
    data = folder / "data"
    data.mkdir()
    x = np.zeros((4, 2), np.float32)
    labels = rng.in_turn(
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
    description = f"labels {labels.dtype} {labels.shape}, num_classes={num_classes}"
    return Case(lambda: _arrays(data, num_classes=num_classes), codes=(2,), description=description)


@family("unknown, non-numeric or non-finite arrays", 6)
def _(rng, fixtures, folder):
    data = folder / "data"
    data.mkdir()
    arrays = {"x": np.zeros((4, 3), np.float32)}
    variant = rng.in_turn(("unknown", "nan", "inf", "objects", "texts", "empty", "none", "npy"))
    if variant == "unknown":
        arrays[rng.choice(("cond", "y", "label", "captions"))] = np.zeros(4, np.float32)
    elif variant in ("nan", "inf"):
        arrays["x"][rng.randrange(4), rng.randrange(3)] = float(variant)
    elif variant == "objects":
        arrays["x"] = np.array([[None] * 3] * 4)
    elif variant == "texts":
        arrays["x"] = np.array([["a"] * 3] * 4)
    elif variant == "empty":
        arrays["x"] = np.zeros((0, 3), np.float32)
    elif variant == "none":
        arrays = {"y": arrays["x"]}
    np.savez(data / "train.npz", **arrays)
    if variant == "npy":  # A .npy file with the name of an .npz file.
        np.save(data / "x.npy", arrays["x"])
        (data / "x.npy").replace(data / "train.npz")
    return Case(lambda: _arrays(data), codes=(2,), description=f"ArrayData: {variant}")


@family("damaged idx files", 6)
def _(rng, fixtures, folder):
    import gzip

    data = copy(fixtures, "idx", folder, "data")
    file = data / rng.choice(("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"))
    if rng.random() < 0.5:
        damage = damage_bytes(rng, file)
    else:
        decompressed = folder / "decompressed"
        decompressed.write_bytes(gzip.decompress(file.read_bytes()))
        damage = damage_bytes(rng, decompressed)
        if decompressed.is_file():
            file.write_bytes(gzip.compress(decompressed.read_bytes(), mtime=0))

    def call():
        from fmjax.data import IdxData

        _load(IdxData("mnist", folder=str(data)))

    return Case(call, description=f"IdxData: {damage}")


def _captions(folder, split="train", **settings):
    from fmjax.data import CaptionedImages

    return _load(CaptionedImages(str(folder), 8, 4, **settings), split)


@family("damaged images", 6)
def _(rng, fixtures, folder):
    images = copy(fixtures, "images", folder, "data")
    damage = damage_bytes(rng, images / f"{rng.randrange(8)}.png")
    return Case(lambda: _captions(images), description=f"CaptionedImages: {damage}")


@family("damaged captions and metadata.jsonl", 6)
def _(rng, fixtures, folder):
    images = copy(fixtures, "images", folder, "data")
    if rng.random() < 0.3:
        damage = damage_bytes(rng, images / f"{rng.randrange(8)}.txt")
    else:
        lines = [{"file_name": f"{n}.png", "text": f"a cat {n}"} for n in range(8)]
        for number in range(8):
            (images / f"{number}.txt").unlink()
        file = images / "metadata.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        damage = damage_lines(rng, file) if rng.random() < 0.7 else damage_bytes(rng, file)
    return Case(lambda: _captions(images), description=f"CaptionedImages: {damage}")


@family("image folders with links, subfolders or other metadata formats", 8)
def _(rng, fixtures, folder):
    images = copy(fixtures, "images", folder, "data")
    texts = {n: (images / f"{n}.txt").read_text() for n in range(8)}
    for number in texts:
        (images / f"{number}.txt").unlink()
    variant = rng.choice(
        ("absolute", "above", "csv", "caption", "links", "loop", "unicode", "below")
    )
    names, codes, expected = {n: f"{n}.png" for n in texts}, (0,), 8
    if variant in ("absolute", "above"):
        names[3] = str(images / "3.png") if variant == "absolute" else "../data/3.png"
        codes = (2,)
    if variant == "unicode":
        for number in texts:
            names[number] = unicodedata.normalize("NFC", f"é{number}.png")
            nfd = unicodedata.normalize("NFD", names[number])
            (images / f"{number}.png").rename(images / nfd)
    if variant in ("links", "below"):
        parent = images if variant == "below" else folder / "blobs"
        inner = parent / "inner"
        inner.mkdir(parents=True)
        for number in texts:
            (images / f"{number}.png").rename(inner / f"{number}.png")
        if variant == "links":
            (images / "inner").symlink_to(inner)
        names = {n: f"inner/{n}.png" for n in texts}
    if variant == "loop":
        (images / "again").symlink_to(images)
    if variant == "csv":
        lines = ["file_name,text", *(f'{names[n]},"{text}, x"' for n, text in texts.items())]
        (images / "metadata.csv").write_text("\n".join(lines) + "\n")
    elif variant == "caption":
        for number, text in texts.items():
            (images / f"{number}.caption").write_text(text)
    else:
        lines = [json.dumps({"file_name": names[n], "text": text}) for n, text in texts.items()]
        (images / "metadata.jsonl").write_text("\n".join(lines) + "\n")

    def call():
        size = sum(_size(images, split) for split in ("train", "test"))
        assert size == expected, f"{size} examples, expected {expected}"

    return Case(call, codes=codes, description=f"CaptionedImages: {variant}")


def _size(images, split):
    from fmjax.data.dataset import NoSuchSplit

    try:
        return len(_captions(images, split))
    except NoSuchSplit:
        return 0


@family("words of other scripts, emoji and punctuation")
def _(rng, fixtures, folder):
    pair = rng.in_turn(
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
        first, second = tokenizer.encode(list(pair))
        assert first.tolist() != second.tolist(), f"{pair} have the same tokens"

    return Case(call, description=f"tokenizer: {pair}")


@family("damaged tokenizer.json of a run")
def _(rng, fixtures, folder):
    from fmjax.data.tokenizer import TokenizerConfig, train_tokenizer

    file = folder / "tokenizer.json"
    tokenizer = train_tokenizer(["a red cat", "a blue dog"], TokenizerConfig())
    file.write_text(tokenizer.to_json())
    damage = damage_json(rng, file)

    def call():
        from fmjax.data import read_word_tokenizer

        read_word_tokenizer(file)

    return Case(call, description=f"read_word_tokenizer: {damage}")


# --- File names --------------------------------------------------------------------------------


@family("file names that are not UTF-8")
def _(rng, fixtures, folder):
    name = rng.choice(("r\udcff", "\udc80x", "r\ud800"))
    arguments = rng.in_turn(
        (
            ["train", str(fixtures / "toy.py"), "--run", name],
            ["reflow", str(fixtures / "toy"), "--run", name],
            ["sample", name],
            ["train", name + ".py"],
        )
    )
    return Case(arguments, **expect_refusal())


# --- Function calls ----------------------------------------------------------------------------


@family("invalid points, vector fields, keys and conditions", 12)
def _(rng, fixtures, folder):
    from tests import test_inputs

    name = rng.choice(tuple(test_inputs.FUNCTIONS))
    fn = test_inputs.FUNCTIONS[name]
    argument = rng.choice(("points", "field", "cond", "keys"))
    valid = (test_inputs.velocity, test_inputs.X, test_inputs.KEYS, None)
    if argument == "keys" and name not in test_inputs.WITH_KEYS:
        argument = "points"
    table, position = {
        "points": (test_inputs.POINTS, 1),
        "field": (test_inputs.VELOCITIES, 0),
        "cond": (test_inputs.CONDITIONS, 3),
        "keys": (test_inputs.WRONG_KEYS, 2),
    }[argument]
    invalid = rng.choice(tuple(table))
    arguments = [*valid[:position], table[invalid][0], *valid[position + 1 :]]
    return Case(lambda: fn(*arguments), codes=(2,), description=f"{name}: {argument} {invalid}")


@family("comparison with closed forms", 6)
def _(rng, fixtures, folder):
    from tests.fuzz.values import CHECKS

    check = rng.in_turn(CHECKS)
    return Case(lambda: check(rng), codes=(0,), description=f"{check.__name__}: {check.__doc__}")


@family("valid commands", 2)
def _(rng, fixtures, folder):
    copy(fixtures, "toy", folder, "run")
    arguments = rng.in_turn(
        (
            ["sample", "run", "--num-samples", "8", "--seed", str(rng.randrange(9))],
            ["sample", "run", "--num-samples", "4", "--output", "o"],
            ["train", str(fixtures / "toy.py"), "--run", "run"],
            ["--version"],
            ["--help"],
        )
    )
    return Case(arguments, codes=(0,))
