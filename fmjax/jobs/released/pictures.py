"""Pictures of prompts as files, each of which says what it is of."""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from fmjax._checks import require
from fmjax._files import (
    lock_outputs,
    require_exists,
    require_folder,
    require_space,
    require_target,
    write_atomically,
)
from fmjax._locks import is_left, lock_folder
from fmjax.jobs.released.request import GenerationRequest
from fmjax.solvers import FixedSteps

_FOLDER = Path("pictures")


class PictureWriter:
    """Writes each picture of a request as a PNG that says what it is of, as soon as it is there.

    Its metadata hold the prompt, and all settings as JSON under "fmjax".

    Attributes:
        paths: What was written.
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
        """Choose the files.

        Args:
            request: What is asked.
            prompts: One for each picture.
            output: Name of the file, numbered if there are several; by default the prompt's words,
                in the folder `pictures`, with a number where there is such a file already.
            latents: The file with the noise, where it does not come from the seed.
            inputs: Files that are read, which no picture may replace.

        Raises:
            ValueError: If the name is not that of a PNG, or of a file that can be written.
            OSError: If no file can be written there.
        """
        ending = "" if output is None else output.suffix
        require(ending in ("", ".png"), "output", "end in .png", output)
        self._request, self._prompts, self._output = request, tuple(prompts), output
        self._noise = (
            {"seed": request.config.seed} if latents is None else {"latents": latents.name}
        )
        self.paths: list[Path] = []
        self._check_targets(inputs)

    def _check_targets(self, inputs: Sequence[Path]) -> None:
        """Whether all files can be written: known before minutes of work."""
        if self._output is None:
            require_folder(_FOLDER)
        else:
            require_target(self._output, inputs=inputs)
            for number in range(len(self._prompts)):
                require_target(self._path(number), inputs=inputs)
        height, width, _ = self._request.latents.event_shape
        pixels = height * width * self._request.latents.factor**2
        folder = _FOLDER if self._output is None else self._output.parent
        num = len(self._prompts)
        require_space(folder, 3 * pixels * num, f"{num} picture{'s' if num > 1 else ''}")

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Hold the files that were named, so that no other process writes them meanwhile."""
        named = () if self._output is None else (self._path(0),)
        with lock_outputs(*named):
            yield

    def __call__(self, number: int, image: np.ndarray) -> None:
        """Write the picture of that number."""
        prompt = self._prompts[number]
        about = _about(self._request, number, prompt, image, self._noise)
        named = self._output is not None
        # A name that nothing has is chosen: two processes must not choose the same.
        with nullcontext() if named else lock_folder(_FOLDER, on_wait=lambda _: None):
            path = self._path(number)
            with write_atomically(path) as temporary:
                _image(image).save(temporary, format="PNG", pnginfo=_metadata(prompt, about))
        self.paths.append(path)

    def _path(self, number: int) -> Path:
        end = f"-{number}" if len(self._prompts) > 1 else ""
        if self._output is not None:
            return self._output.with_name(f"{self._output.stem}{end}.png")
        noise = "-".join(f"{name}{slug(str(of))}" for name, of in self._noise.items())
        stem = f"{slug(self._prompts[number])}-{noise}{end}"
        return unused(_FOLDER, stem, ".png")


def _about(
    request: GenerationRequest, number: int, prompt: str, image: np.ndarray, noise: dict[str, Any]
) -> dict[str, Any]:
    config = dataclasses.asdict(request.config)
    lora = request.config.lora
    config |= {"lora": None if lora is None else lora.name} | ({} if lora else {"lora_scale": None})
    config |= {"mesh": None, "seed": None, "guidance": request.guidance, "dtype": request.dtype}
    steps = request.steps
    if isinstance(steps, FixedSteps):
        config |= {"steps": len(steps.times) - 1, "rtol": None, "atol": None}
    return {name: value for name, value in config.items() if value is not None} | {
        **noise,
        "prompt": prompt,
        "number": number,
        "model": request.model.path.resolve().name,
        "height": image.shape[0],
        "width": image.shape[1],
    }


def unused(folder: Path, stem: str, ending: str = "") -> Path:
    """A name in a folder that nothing has: the stem, or with -v2, -v3, .. behind it.

    A folder in which a killed process has left nothing but a lock counts as nothing.
    """
    stems = itertools.chain([stem], (f"{stem}-v{number}" for number in itertools.count(2)))
    paths = (folder / f"{name}{ending}" for name in stems)
    return next(path for path in paths if not os.path.lexists(path) or _is_empty(path))


def _is_empty(path: Path) -> bool:
    return path.is_dir() and all(map(is_left, path.iterdir()))


def slug(prompt: str) -> str:
    """A prompt's words as the name of a file."""
    return "-".join(re.findall(r"\w+", prompt.lower()))[:60] or "picture"


def _image(image: np.ndarray) -> Any:
    from PIL import Image

    levels = np.clip(np.rint((image.astype(np.float64) + 1.0) * 127.5), 0, 255).astype(np.uint8)
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def _metadata(prompt: str, about: dict[str, Any]) -> Any:
    from PIL.PngImagePlugin import PngInfo

    found = PngInfo()
    found.add_itxt("prompt", prompt)
    found.add_itxt("fmjax", json.dumps(about, ensure_ascii=False))
    return found


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file, one on each line; empty lines count for nothing.

    Raises:
        ValueError: If the file is not there, no text or empty.
    """
    require_exists("prompts", path)
    require(path.is_file(), "prompts", "be a text file", f"the folder {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"file {path} must be text, got {error}") from error
    found = [line.strip() for line in lines if line.strip()]
    require(bool(found), f"file {path}", "hold a prompt on each line", "no line")
    return found
