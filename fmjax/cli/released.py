"""The commands on released models: `generate`, `encode`, and `compare` on a prompt."""

from pathlib import Path
from typing import Annotated

from fmjax.cli.parsing import Refused, parse, split_path
from fmjax.cli.work import command_progress


def generate(arguments: list[str]) -> int:
    """Run `fmjax generate FOLDER PROMPT`; the exit code is 1 if a solve failed."""
    folder, options = split_path("generate", "FOLDER", arguments)
    prompt = None
    if options and not options[0].startswith("-"):
        prompt, *options = options
    if (folder / "model.json").is_file():
        raise Refused(
            f"{folder} is a run, not a released model; use fmjax sample {folder} --prompts "
            '"red heart" "cat"'
        )
    import dataclasses

    import tyro

    from fmjax.config.generate import GenerateConfig
    from fmjax.jobs.released.generate import generate as generate_images
    from fmjax.jobs.released.pictures import PictureWriter
    from fmjax.jobs.released.request import validate_request
    from fmjax.pretrained.folder import open_model

    @dataclasses.dataclass(frozen=True)
    class Generate:
        """Generate images of prompts with a released model in diffusers format.

        Attributes:
            config: Image size, number of images, solver and guidance.
            prompts: Text file with one prompt on each line, instead of the prompt argument.
            latents: An .npz file with the initial noise, an array init_latents in the layout of
                diffusers.
            output: Name of the PNG file (default: the words of the prompt, in the folder pictures).
        """

        config: Annotated[GenerateConfig, tyro.conf.arg(name="")]
        prompts: Path | None = None
        latents: Path | None = None
        output: Path | None = None

    args = parse(Generate, Generate(GenerateConfig()), options, f"fmjax generate {folder}")
    prompts = _one_prompt_or_file(prompt, args.prompts)
    with command_progress() as progress:
        model = open_model(folder)
        image_prompts = [text for text in prompts for _ in range(args.config.num_images)]
        request = validate_request(model, args.config)
        inputs = [file for file in (args.prompts, args.latents) if file is not None]
        writer = PictureWriter(
            request, image_prompts, args.output, latents=args.latents, inputs=inputs
        )
        with writer.locked():
            pictures = generate_images(
                model,
                prompts,
                args.config,
                latents=args.latents,
                on_image=writer,
                progress=progress,
            )
        progress.say("wrote " + ", ".join(map(str, writer.files)))
        if not pictures.succeeded.all():
            progress.say(f"{(~pictures.succeeded).sum()} of them did not reach t = 1")
    return 0 if pictures.succeeded.all() else 1


def _one_prompt_or_file(prompt: str | None, file: Path | None) -> list[str]:
    """Return the prompts of a command that takes either one prompt or a file of prompts."""
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
    """Run `fmjax encode FOLDER IMAGES`."""
    folder, words = split_path("encode", "FOLDER", arguments)
    if not words or words[0].startswith("-"):
        raise Refused(
            "fmjax encode needs a folder of images after the folder of the model: "
            "fmjax encode FOLDER IMAGES --output OUTPUT"
        )
    images, options = Path(words[0]).resolve(), words[1:]
    import dataclasses

    import tyro

    from fmjax.config.encode import EncodeConfig
    from fmjax.jobs.released.encode import encode as encode_images
    from fmjax.pretrained.folder import open_model

    @dataclasses.dataclass(frozen=True)
    class Encode:
        """Encode images and their captions with a released model, as training data.

        Attributes:
            config: Image size, batch size and number format.
            output: The new folder (default: name of the folder of images, followed by -encoded).
        """

        config: Annotated[EncodeConfig, tyro.conf.arg(name="")]
        output: Path = images.with_name(f"{images.name}-encoded")

    args = parse(Encode, Encode(EncodeConfig()), options, f"fmjax encode {folder}")
    with command_progress() as progress:
        encode_images(open_model(folder), images, args.output, args.config, progress=progress)


def compare_prompt(folder: Path, arguments: list[str]) -> None:
    """Run `fmjax compare FOLDER PROMPT`.

    Args:
        folder: Folder of a released model.
        arguments: The prompt and the options.
    """
    if not arguments or arguments[0].startswith("-"):
        raise Refused(
            "fmjax compare needs a prompt after the folder of a released model: "
            'fmjax compare FOLDER "a red fox in the snow"'
        )
    prompt, *options = arguments
    import dataclasses

    import tyro

    from fmjax.config.compare import ComparePromptConfig
    from fmjax.config.generate import GenerateConfig
    from fmjax.jobs.released.compare_prompt import compare_prompt as compare_on_prompt
    from fmjax.jobs.released.pictures import slug, unused_name
    from fmjax.pretrained.folder import open_model

    @dataclasses.dataclass(frozen=True)
    class Compare:
        """Compare fixed-step and adaptive solvers on a prompt with a released model.

        Attributes:
            config: Solvers and settings that are compared.
            picture: Image size, guidance and seed; solver, steps and tolerances have no effect.
            output: Folder of the tables and the report page, which are replaced if they exist
                (default: a name made of the model and the prompt, in the folder comparisons).
        """

        config: Annotated[ComparePromptConfig, tyro.conf.arg(name="")]
        picture: GenerateConfig
        output: Path | None = None

    default = Compare(ComparePromptConfig(), GenerateConfig())
    args = parse(Compare, default, options, f"fmjax compare {folder}")
    name = f"{folder.resolve().name}-{slug(prompt)}"
    output = args.output or unused_name(Path("comparisons"), name)
    with command_progress() as progress:
        model = open_model(folder)
        compare_on_prompt(model, prompt, output, args.config, args.picture, progress=progress)
