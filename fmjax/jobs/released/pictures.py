"""Write generated pictures as PNG files with their settings as metadata."""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from fmjax._checks import require
from fmjax._files import (
    lock_outputs,
    require_exists,
    require_folder,
    require_space,
    require_target,
    write_atomically,
)
from fmjax._locks import is_leftover, lock_folder
from fmjax.jobs.released.request import GenerationRequest
from fmjax.solvers import FixedSteps

_FOLDER = Path("pictures")


class PictureWriter:
    """Write the pictures of a request as PNG files, each as soon as it is decoded.

    The metadata hold the prompt under "prompt" and all settings as JSON under "fmjax".

    Attributes:
        paths: The files that were written.
    """

    def __init__(
        self,
        request: GenerationRequest,
        prompts: Sequence[str],
        output: Path | None = None,
        *,
        latents: Path | None = None,
        inputs: Sequence[Path] = (),
    ) -> None:
        """Check that the files can be written.

        Args:
            request: The request.
            prompts: One prompt per picture.
            output: The output file, with a number added for several pictures. By default, a new
                file in the folder `pictures`, named by the words of the prompt.
            latents: The file with the noise, or None if the noise is generated from the seed.
            inputs: Input files, which no picture may replace.

        Raises:
            ValueError: If `output` is not a PNG file that can be written.
            OSError: If no file can be created in the folder.
        """
        suffix = "" if output is None else output.suffix
        require(suffix in ("", ".png"), "output", "end in .png", output)
        self._request, self._prompts, self._output = request, tuple(prompts), output
        self._noise = (
            {"seed": request.config.seed} if latents is None else {"latents": latents.name}
        )
        self.files: list[Path] = []
        self._check_targets(inputs)

    def _check_targets(self, inputs: Sequence[Path]) -> None:
        """Raise unless all files can be written, before the pictures are computed."""
        if self._output is None:
            require_folder(_FOLDER)
        else:
            require_target(self._output, inputs=inputs)
            for index in range(len(self._prompts)):
                require_target(self._file(index), inputs=inputs)
        height, width, _ = self._request.latents.event_shape
        pixels = height * width * self._request.latents.factor**2
        folder = _FOLDER if self._output is None else self._output.parent
        num = len(self._prompts)
        require_space(folder, 3 * pixels * num, f"{num} picture{'s' if num > 1 else ''}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the output files, if `output` was given, against writes of other processes."""
        files = () if self._output is None else (self._file(0),)
        with lock_outputs(*files):
            yield

    def __call__(self, index: int, image: np.ndarray) -> None:
        """Write the picture at `index`, with pixels in [-1, 1]."""
        prompt = self._prompts[index]
        settings = _settings(self._request, index, prompt, image, self._noise)
        has_name = self._output is not None
        # Lock the folder while an unused name is chosen, so that processes choose different names.
        with nullcontext() if has_name else lock_folder(_FOLDER, on_wait=lambda _: None):
            file = self._file(index)
            with write_atomically(file) as temporary:
                _to_pil(image).save(temporary, format="PNG", pnginfo=_metadata(prompt, settings))
        self.files.append(file)

    def _file(self, index: int) -> Path:
        end = f"-{index}" if len(self._prompts) > 1 else ""
        if self._output is not None:
            return self._output.with_name(f"{self._output.stem}{end}.png")
        noise = "-".join(f"{name}{slug(str(value))}" for name, value in self._noise.items())
        stem = f"{slug(self._prompts[index])}-{noise}{end}"
        return unused_name(_FOLDER, stem, ".png")


def _settings(
    request: GenerationRequest,
    index: int,
    prompt: str,
    image: np.ndarray,
    noise: Mapping[str, int | str],
) -> dict[str, object]:
    """The settings that reproduce a picture, as JSON values."""
    config = dataclasses.asdict(request.config)
    lora = request.config.lora
    config |= {"lora": None if lora is None else lora.name} | ({} if lora else {"lora_scale": None})
    config |= {"mesh": None, "seed": None, "guidance": request.guidance, "dtype": request.dtype}
    steps = request.steps
    if isinstance(steps, FixedSteps):
        config |= {"num_steps": len(steps.times) - 1, "rtol": None, "atol": None}
    return {name: value for name, value in config.items() if value is not None} | {
        **noise,
        "prompt": prompt,
        "number": index,
        "model": request.model.root.resolve().name,
        "height": image.shape[0],
        "width": image.shape[1],
    }


def unused_name(folder: Path, stem: str, suffix: str = "") -> Path:
    """The first unused name in a folder among `stem`, `stem-v2`, `stem-v3` and so on.

    Names of empty folders, and of folders with only the lock of a killed process, count as unused.
    """
    stems = itertools.chain([stem], (f"{stem}-v{version}" for version in itertools.count(2)))
    candidates = (folder / f"{name}{suffix}" for name in stems)
    return next(file for file in candidates if not os.path.lexists(file) or _is_empty(file))


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and all(map(is_leftover, folder.iterdir()))


def slug(prompt: str) -> str:
    """The words of a prompt as part of a file name, at most 60 characters."""
    return "-".join(re.findall(r"\w+", prompt.lower()))[:60] or "picture"


def _to_pil(image: np.ndarray) -> Image.Image:
    """Convert pixels in [-1, 1] to an 8-bit image."""
    levels = np.clip(np.rint((image.astype(np.float64) + 1.0) * 127.5), 0, 255).astype(np.uint8)
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def _metadata(prompt: str, settings: Mapping[str, object]) -> PngImagePlugin.PngInfo:
    metadata = PngImagePlugin.PngInfo()
    metadata.add_itxt("prompt", prompt)
    metadata.add_itxt("fmjax", json.dumps(settings, ensure_ascii=False))
    return metadata


def read_prompts(file: Path) -> list[str]:
    """Read the prompts of a text file, one per line; empty lines are ignored.

    Raises:
        ValueError: If the file does not exist, is not UTF-8 text or has no prompts.
    """
    require_exists("prompts", file)
    require(file.is_file(), "prompts", "be a text file", f"the folder {file}")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"file {file} must be UTF-8 text, got {error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    require(bool(prompts), f"file {file}", "have one prompt per line", "no prompts")
    return prompts
