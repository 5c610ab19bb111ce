"""What networks that are conditioned on text ask of their condition and of their images."""

from fmjax._arrays import Cond, Conditions, Text, TextShape
from fmjax._checks import require


def require_text(conditions: Conditions, network: str) -> TextShape:
    """The sizes of a text; raise unless these are the conditions.

    Args:
        conditions: What a model is conditioned on.
        network: In words, for the message: "an MM-DiT".
    """
    if not isinstance(conditions, TextShape):
        raise ValueError(f"conditions must be text for {network} network, got {conditions}")
    return conditions


def require_patches(event_shape: tuple[int, ...], size: int) -> None:
    """Raise unless these are images of whole patches."""
    require(len(event_shape) == 3, "event_shape", "be (height, width, channel)", event_shape)
    height, width, _ = event_shape
    divides = height % size == 0 and width % size == 0
    require(divides, "patch_size", f"divide the image size {height}x{width}", size)


def checked_text(cond: Cond, shape: TextShape) -> Text:
    """The condition; raise unless it is a text of these sizes."""
    if not isinstance(cond, Text):
        raise ValueError(f"cond must be a Text for a network of text, got {type(cond)}")
    want = ((shape.num_tokens, shape.width), (shape.pooled_width,))
    got = (cond.tokens.shape[1:], cond.pooled.shape[1:])
    require(want == got, "cond", f"hold tokens and pooled of shapes {want}", got)
    return cond
