"""Convert torch.export programs to LiteRT files. Run by the Python of the converter's own environment, which has torch
and litert-torch and no edgestill:

    python litert_convert.py FOLDER

Each FOLDER/NAME.pt2, a program with one input called `input`, becomes FOLDER/NAME.tflite; one that holds quantize and
dequantize operators becomes integer operators. A program that cannot be converted ends the script with exit code 1 and
FOLDER/error.json: {"name": NAME, "error": "the whole message"}.
"""

import json
import sys
import warnings
from pathlib import Path


def convert(program: Path, output: Path) -> None:
    import torch

    with warnings.catch_warnings():  # that it will move to another package
        warnings.simplefilter("ignore")
        import torch.ao.quantization.fx._decomposed
    import litert_torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    exported = torch.export.load(program)
    integer = any(str(node.target).startswith("quantized_decomposed.") for node in exported.graph.nodes)
    # Nothing is quantized by it: the program is already. It tells the converter to make integer operators of that.
    symmetric = get_symmetric_quantization_config(is_per_channel=True)
    quantization = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(symmetric)) if integer else None
    _, example = exported.example_inputs
    module = exported.module(check_guards=False)
    litert_torch.convert(module, sample_kwargs=example, quant_config=quantization).export(str(output))


def main() -> int:
    folder = Path(sys.argv[1])
    for program in sorted(folder.glob("*.pt2")):
        try:
            convert(program, program.with_suffix(".tflite"))
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller says it
            message = str(error) or type(error).__name__
            (folder / "error.json").write_text(json.dumps({"name": program.stem, "error": message}))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
