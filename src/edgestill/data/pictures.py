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
        image = _resize_and_cut(image, size)
    return np.array(image, dtype=np.uint8).reshape(image.height, image.width, channels)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 for upright."""
    # getexif() alone would decode a whole PNG in search of a late chunk.
    return int(image.getexif().get(_ORIENTATION, 1)) if "exif" in image.info else 1


def _resize_and_cut(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    if min(width, height) != size:
        shorter = min(width, height)
        width, height = (max(size, round(side * size / shorter)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size)) if (width, height) != (size, size) else image
