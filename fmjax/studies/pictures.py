"""Pictures of prompts as files, each of which says what it is of."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fmjax._checks import require
from fmjax._files import write_atomically
from fmjax._progress import Progress, Silent
from fmjax.config.generating import GenerateConfig
from fmjax.solvers import FixedSteps
from fmjax.studies.generate import Pictures, Request


def write_pictures(
    pictures: Pictures, request: Request, output: Path | None, progress: Progress = Silent()
) -> list[Path]:
    """Write each picture as a PNG that says what it is of.

    Its metadata hold the prompt, and all settings as JSON under "fmjax".

    Args:
        pictures: From `generate`.
        request: What was asked.
        output: Name of the file, numbered if there are several; by default the prompt's words, in
            the folder `pictures`.
        progress: Hears of the files.
    """
    paths = []
    for number, (path, prompt) in enumerate(_names(pictures, request.config, output)):
        about = _about(pictures, request, number)
        with write_atomically(path) as temporary:
            _image(pictures.images[number]).save(temporary, format="PNG",
                                                 pnginfo=_metadata(prompt, about))  # fmt: skip
        paths.append(path)
    progress.say("wrote " + ", ".join(map(str, paths)))
    return paths


def _about(pictures: Pictures, request: Request, number: int) -> dict[str, Any]:
    config = dataclasses.asdict(request.config)
    lora = request.config.lora
    config |= {"lora": None if lora is None else lora.name} | ({} if lora else {"lora_scale": None})
    config |= {"mesh": None, "guidance": request.guidance, "dtype": request.dtype}
    height, width = pictures.images.shape[1:3]
    steps = request.steps
    if isinstance(steps, FixedSteps):
        config |= {"steps": len(steps.times) - 1, "rtol": None, "atol": None}
    return {name: value for name, value in config.items() if value is not None} | {
        "prompt": pictures.prompts[number],
        "number": number,
        "model": request.model.path.resolve().name,
        "height": height,
        "width": width,
        "network_evaluations": int(pictures.nfe[number]),
    }


def _names(
    pictures: Pictures, config: GenerateConfig, output: Path | None
) -> Iterator[tuple[Path, str]]:
    several = len(pictures.prompts) > 1
    for number, prompt in enumerate(pictures.prompts):
        end = f"-{number}" if several else ""
        if output is not None:
            yield output.with_name(f"{output.stem}{end}{output.suffix or '.png'}"), prompt
            continue
        yield Path("pictures") / f"{slug(prompt)}-seed{config.seed}{end}.png", prompt


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
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"file {path} must be text, got {error}") from error
    found = [line.strip() for line in lines if line.strip()]
    require(bool(found), f"file {path}", "hold a prompt on each line", "no line")
    return found
