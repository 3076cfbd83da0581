"""Small images, encoded, and written as parquet in the Hub's layout."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

NAMES = ("cat", "dog", "fox")


def noise(count: int, height: int = 6, width: int = 5, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[-1] == 1 else pixels).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, images: list[bytes | None], labels: list[int | None] | None, names: Any = NAMES) -> Path:
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    rows = [{"bytes": data, "path": f"{path.stem}-{row}.png"} for row, data in enumerate(images)]
    columns = {"image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
        features["label"] = (
            {"_type": "ClassLabel", "names": list(names)} if names else {"dtype": "int64", "_type": "Value"}
        )
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path
