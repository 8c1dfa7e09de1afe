"""How a module is stored: the one place that knows of quantisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]

# By what the headers call them, in the order in which the `safetensors` library lays them into a file.
DTYPE_BYTES = {"F32": 4, "I32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}

TORCH_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

# Bits of an I32, into which AWQ and GPTQ pack.
PACK_BITS = 32

# Values of an MXFP4 block, which share a scale, and the bytes that they take.
MXFP4_VALUES, MXFP4_BYTES = 32, 16


@dataclass(frozen=True)
class Tensor:
    """A stored tensor, as yet without a place in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Linear:
    """A weight of `[rows, columns]` and perhaps a bias of `[rows]`; quantised where the model is."""

    name: str
    rows: int
    columns: int
    bias: bool = False


@dataclass(frozen=True)
class Experts:
    """The weights and biases that the experts of a layer have for the same purpose, stacked and quantised to MXFP4."""

    name: str
    experts: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Parameter:
    """Whatever is never quantised. Without a `dtype` it has the model's."""

    name: str
    shape: tuple[int, ...]
    dtype: str | None = None


Module = Linear | Experts | Parameter


def ceil_div(number: int, by: int) -> int:
    return -(-number // by)


def plain(linear: Linear, _: Config) -> Iterator[Parameter]:
    yield Parameter(f"{linear.name}.weight", (linear.rows, linear.columns))


def fp8(linear: Linear, quantisation: Config) -> Iterator[Parameter]:
    """DeepSeek's: a scale for each block of the weight, blocks at the edges being smaller."""
    rows, columns = quantisation["weight_block_size"]
    blocks = ceil_div(linear.rows, rows), ceil_div(linear.columns, columns)
    yield Parameter(f"{linear.name}.weight", (linear.rows, linear.columns), "F8_E4M3")
    yield Parameter(f"{linear.name}.weight_scale_inv", blocks, "F32")


def awq(linear: Linear, quantisation: Config) -> Iterator[Parameter]:
    """AutoAWQ's GEMM: `[columns, rows]`, packed along the rows."""
    groups, packed = linear.columns // quantisation["group_size"], PACK_BITS // quantisation["bits"]
    yield Parameter(f"{linear.name}.qweight", (linear.columns, linear.rows // packed), "I32")
    yield Parameter(f"{linear.name}.qzeros", (groups, linear.rows // packed), "I32")
    yield Parameter(f"{linear.name}.scales", (groups, linear.rows), "F16")


def gptq(linear: Linear, quantisation: Config) -> Iterator[Parameter]:
    """AutoGPTQ's: `[columns, rows]`, weights packed along the columns, zero points along the rows."""
    groups, packed = linear.columns // quantisation["group_size"], PACK_BITS // quantisation["bits"]
    yield Parameter(f"{linear.name}.qweight", (linear.columns // packed, linear.rows), "I32")
    yield Parameter(f"{linear.name}.qzeros", (groups, linear.rows // packed), "I32")
    yield Parameter(f"{linear.name}.scales", (groups, linear.rows), "F16")
    yield Parameter(f"{linear.name}.g_idx", (linear.columns,), "I32")


def fbgemm_fp8(linear: Linear, _: Config) -> Iterator[Parameter]:
    """A scale for each row."""
    yield Parameter(f"{linear.name}.weight", (linear.rows, linear.columns), "F8_E4M3")
    yield Parameter(f"{linear.name}.weight_scale", (linear.rows, 1), "F32")


def compressed_int8(linear: Linear, _: Config) -> Iterator[Parameter]:
    """llm-compressor's `int-quantized` with a scale for each row; activations are scaled as they come."""
    yield Parameter(f"{linear.name}.weight", (linear.rows, linear.columns), "I8")
    yield Parameter(f"{linear.name}.weight_scale", (linear.rows, 1))


# By `quant_method`. MXFP4 is for experts alone.
LINEAR: dict[str, Callable[[Linear, Config], Iterator[Parameter]]] = {
    "none": plain,
    "fp8": fp8,
    "awq": awq,
    "gptq": gptq,
    "fbgemm_fp8": fbgemm_fp8,
    "compressed-tensors": compressed_int8,
    "mxfp4": plain,
}


def mxfp4(experts: Experts) -> Iterator[Parameter]:
    """OpenAI's: blocks of 4-bit values along the columns and a scale for each, both as bytes; the bias stays as it is."""
    blocks = (experts.experts, experts.rows, experts.columns // MXFP4_VALUES)
    yield Parameter(f"{experts.name}_blocks", (*blocks, MXFP4_BYTES), "U8")
    yield Parameter(f"{experts.name}_scales", blocks, "U8")
    yield Parameter(f"{experts.name}_bias", (experts.experts, experts.rows))


def stored(modules: Iterator[Module], config: Config) -> Iterator[Tensor]:
    """The tensors that the modules of a model with this config are stored as, in the order of the modules."""
    quantisation = config.get("quantization_config", {"quant_method": "none"})
    of_linear = LINEAR[quantisation["quant_method"]]
    unquantised = set(quantisation.get("modules_to_not_convert") or ())

    def parameters(module: Module) -> Iterator[Parameter]:
        match module:
            case Linear():
                yield from (plain if module.name in unquantised else of_linear)(module, quantisation)
                if module.bias:
                    yield Parameter(f"{module.name}.bias", (module.rows,))
            case Experts():
                yield from mxfp4(module)
            case Parameter():
                yield module

    # gpt-oss does not name it.
    of_model = TORCH_DTYPES[config.get("torch_dtype", "bfloat16")]
    for module in modules:
        for parameter in parameters(module):
            yield Tensor(parameter.name, parameter.shape, parameter.dtype or of_model)
