"""Classify a picture with the artifact beside this file. Needs numpy, Pillow and the artifact's runtime only.

    python run.py picture.png [--top 5] [--threads 1]

`card.json` says which file and runtime these are, how the picture is normalised, and what the outputs are called.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent


def normalised(pixels: np.ndarray, expected: dict[str, Any]) -> np.ndarray:
    """uint8 [size, size, C] as the artifact takes it: float32 [1, C, size, size]."""
    scaled = (np.asarray(pixels, np.float32) / 255 - np.float32(expected["mean"])) / np.float32(expected["std"])
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def main() -> int:
    card = json.loads((HERE / "card.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=f"Classify a picture with {card['file']}.")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    try:
        runtime, pictures = (importlib.import_module(Path(card[key]).stem) for key in ("runtime_file", "pictures_file"))
        expected = card["normalisation"]
        with Image.open(options.picture) as picture:
            data = card["pictures"]  # as those that the model learned from
            pixels = pictures.like_data(
                pictures.to_pixels(picture, data["channels"], data["size"]), data["height"], data["width"]
            )
            image = normalised(pictures.like_model(pixels, expected["channels"], expected["size"]), expected)
        logits = runtime.load(HERE / card["file"], options.threads)(image)[0].astype(np.float64)
    except ImportError as error:
        print(f"{error}; install: {card['install']}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    for place in np.argsort(-shares)[: options.top]:
        print(f"{shares[place]:7.2%}  {card['labels'][place]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
