"""`fmjax generate`: pictures of prompts with a released model."""

from pathlib import Path
from typing import Annotated

from fmjax.cli.parsing import Refused, parse, path_and_rest
from fmjax.cli.work import working


def generate(arguments: list[str]) -> int:
    """Make pictures; 1 if a solve did not arrive."""
    path, rest = path_and_rest("generate", "FOLDER", arguments)
    prompt, rest = (rest[0], rest[1:]) if rest and not rest[0].startswith("-") else (None, rest)
    if (path / "model.json").is_file():
        raise Refused(
            f"{path} is a run, not a released model: fmjax sample {path} --prompts "
            '"red heart" "cat"'
        )
    import dataclasses

    import tyro

    from fmjax.config.generate import GenerateConfig
    from fmjax.jobs.released.generate import generate as make
    from fmjax.jobs.released.pictures import PictureWriter
    from fmjax.jobs.released.request import validate_request
    from fmjax.pretrained.folder import open_model

    @dataclasses.dataclass(frozen=True)
    class Generate:
        """Make pictures of prompts with a released model: a folder of diffusers.

        Attributes:
            config: How.
            prompts: A text file with a prompt on each line, instead of the one prompt.
            latents: An .npz file with noise to start from: init_latents, as diffusers has it.
            output: Name of the PNG file (default: the prompt's words, in the folder pictures).
        """

        config: Annotated[GenerateConfig, tyro.conf.arg(name="")]
        prompts: Path | None = None
        latents: Path | None = None
        output: Path | None = None

    asked = parse(Generate, Generate(GenerateConfig()), rest, f"fmjax generate {path}")
    texts = _one_prompt_or_file(prompt, asked.prompts)
    with working() as progress:
        model = open_model(path)
        each = [text for text in texts for _ in range(asked.config.num_images)]
        request = validate_request(model, asked.config)
        inputs = [file for file in (asked.prompts, asked.latents) if file is not None]
        writer = PictureWriter(request, each, asked.output, latents=asked.latents, inputs=inputs)
        with writer.holding():
            pictures = make(
                model,
                texts,
                asked.config,
                latents=asked.latents,
                on_image=writer,
                progress=progress,
            )
        progress.say("wrote " + ", ".join(map(str, writer.paths)))
        if not pictures.succeeded.all():
            progress.say(f"{(~pictures.succeeded).sum()} of them did not arrive at t = 1")
    return 0 if pictures.succeeded.all() else 1


def _one_prompt_or_file(prompt: str | None, file: Path | None) -> list[str]:
    """Return the prompts of a command that takes one prompt or a file of them."""
    from fmjax.jobs.released.pictures import read_prompts

    if file is not None and prompt is None:
        return read_prompts(file)
    if file is None and prompt is not None:
        return [prompt]
    raise Refused(
        "fmjax generate needs a prompt after the folder, or --prompts FILE: "
        'fmjax generate FOLDER "a red fox in the snow"'
    )


def encode(arguments: list[str]) -> None:
    """Write latents and encoded captions of images."""
    path, rest = path_and_rest("encode", "FOLDER", arguments)
    if not rest or rest[0].startswith("-"):
        raise Refused(
            "fmjax encode needs a folder of images after that of the model: "
            "fmjax encode FOLDER IMAGES --output OUTPUT"
        )
    images, rest = Path(rest[0]).resolve(), rest[1:]
    import dataclasses

    import tyro

    from fmjax.jobs.released.encode import EncodeConfig
    from fmjax.jobs.released.encode import encode as make
    from fmjax.pretrained.folder import open_model

    @dataclasses.dataclass(frozen=True)
    class Encode:
        """Write images and their captions as a released model sees them, for training.

        Attributes:
            config: How.
            output: The new folder (default: that of the images, with -encoded behind its name).
        """

        config: Annotated[EncodeConfig, tyro.conf.arg(name="")]
        output: Path = images.with_name(f"{images.name}-encoded")

    asked = parse(Encode, Encode(EncodeConfig()), rest, f"fmjax encode {path}")
    with working() as progress:
        make(open_model(path), images, asked.output, asked.config, progress=progress)


def compare_prompt(path: Path, arguments: list[str]) -> None:
    """Compare solvers on a prompt."""
    prompt, rest = (arguments[0], arguments[1:]) if arguments else ("-", [])
    if prompt.startswith("-"):
        raise Refused(
            "fmjax compare needs a prompt after the folder of a released model: "
            'fmjax compare FOLDER "a red fox in the snow"'
        )
    import dataclasses

    import tyro

    from fmjax.config.generate import GenerateConfig
    from fmjax.jobs.released.compare_prompt import ComparePromptConfig
    from fmjax.jobs.released.compare_prompt import compare_prompt as make
    from fmjax.jobs.released.pictures import slug, unused
    from fmjax.pretrained.folder import open_model

    @dataclasses.dataclass(frozen=True)
    class Compare:
        """Compare fixed and adaptive solvers on a prompt, on one released model.

        Attributes:
            config: Which solvers.
            picture: Of what size, and how guided; its solver and steps do not count.
            output: Folder of the tables and the page (default: the names of model and prompt, in
                the folder comparisons); what is there is replaced.
        """

        config: Annotated[ComparePromptConfig, tyro.conf.arg(name="")]
        picture: GenerateConfig
        output: Path | None = None

    default = Compare(ComparePromptConfig(), GenerateConfig())
    asked = parse(Compare, default, rest, f"fmjax compare {path}")
    name = f"{path.resolve().name}-{slug(prompt)}"
    output = asked.output or unused(Path("comparisons"), name)
    with working() as progress:
        make(open_model(path), prompt, output, asked.config, asked.picture, progress=progress)
