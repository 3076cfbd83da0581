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


def prepare(picture: Image.Image, expected: dict[str, Any]) -> np.ndarray:
    """The picture as the artifact takes it: float32 [1, C, size, size]."""
    size = expected["size"]
    picture = picture.convert("L" if expected["channels"] == 1 else "RGB")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, np.float32).reshape(size, size, -1) / 255
    normalised = (pixels - np.float32(expected["mean"])) / np.float32(expected["std"])
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None], np.float32)


def main() -> int:
    card = json.loads((HERE / "card.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=f"Classify a picture with {card['file']}.")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    try:
        runtime = importlib.import_module(Path(card["runtime_file"]).stem)
        with Image.open(options.picture) as picture:
            image = prepare(picture, card["normalisation"])
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
