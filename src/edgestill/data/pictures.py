"""One picture as pixels, in training as on a device: this file needs numpy and Pillow only, and is copied beside an
artifact, where it runs alone.

Shape suffixes: H height, W width, C channels.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels_HWC = npt.NDArray[np.uint8]

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def to_pixels(image: Image.Image, channels: int, size: int | None) -> Pixels_HWC:
    """One image as uint8 [H, W, C].

    Turned upright by its EXIF orientation; transparency laid over white; 16-bit grey divided by 257; resized so that
    the shorter side is `size` (bilinear with antialiasing), and cut to the middle square.
    """
    turned = orientation(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if turned in _TURNS:
        image = image.transpose(_TURNS[turned])
    if size is not None:
        image = _resize_and_cut(image, size, size)
    return np.array(image, dtype=np.uint8).reshape(image.height, image.width, channels)


def like_data(pixels: Pixels_HWC, height: int, width: int) -> Pixels_HWC:
    """Pixels of any size as those of a data set: resized until height × width is covered, and cut to the middle."""
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return np.array(_resize_and_cut(image, height, width), dtype=np.uint8).reshape(height, width, -1)


def like_model(pixels: Pixels_HWC, channels: int, size: int) -> Pixels_HWC:
    """Pixels of a data set as a model takes them: stretched to a square, one grey channel spread over three."""
    if pixels.shape[:2] != (size, size):
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        pixels = np.array(image.resize((size, size), Image.Resampling.BILINEAR), dtype=np.uint8)
    return np.broadcast_to(pixels.reshape(size, size, -1), (size, size, channels))


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 for upright."""
    # getexif() alone would decode a whole PNG in search of a late chunk.
    return int(image.getexif().get(_ORIENTATION, 1)) if "exif" in image.info else 1


def _resize_and_cut(image: Image.Image, height: int, width: int) -> Image.Image:
    whole_width, whole_height = image.size
    if whole_width * height < whole_height * width:
        sides = (width, max(height, round(whole_height * width / whole_width)))
    else:
        sides = (max(width, round(whole_width * height / whole_height)), height)
    if image.size != sides:
        image = image.resize(sides, Image.Resampling.BILINEAR)
    left, top = (sides[0] - width) // 2, (sides[1] - height) // 2
    return image.crop((left, top, left + width, top + height)) if sides != (width, height) else image
