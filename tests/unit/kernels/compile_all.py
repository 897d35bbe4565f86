"""Compile every kernel for GPUs that need not be there, down to the machine code that ptxas makes; a program.

One line a kernel, target and set of formats, with the bytes of the widest load. Run by `test_compile.py` in a process
of its own, because in that of the tests the kernels are interpreted.
"""

import itertools
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from switchlora.kernels.jit.exchange import exchange
from switchlora.kernels.jit.moving import factor_step
from switchlora.kernels.jit.ordinary import ordinary_step
from switchlora.kernels.jit.weight_update import weight_update

CAPABILITIES = (80, 90)
TABLE, FLOATS, INT, FLOAT = "*i64", "*fp32", "i32", "fp32"
FORMATS = tuple(itertools.product((tl.float32, tl.bfloat16), repeat=2))  # of parameter and gradient, of moments


def cases():
    """Kernel, types of its arguments in order, and its compile-time constants."""
    steps = {"weight1": FLOAT, "beta2": FLOAT, "weight2": FLOAT}
    for parameter, moment, aligned in (*((*formats, True) for formats in FORMATS), (tl.bfloat16, tl.float32, False)):
        formats = {"PARAMETER": parameter, "GRAD": parameter, "MOMENT": moment, "ALIGNED": aligned, "BLOCK": 1024}
        arguments = {"table": TABLE, "coefficients": FLOATS, "product": FLOATS, "r": INT, "numel": INT, **steps}
        for is_A in (True, False):
            yield factor_step, arguments, {"WIDTH": 18, "COLUMNS": 2048, "IS_A": is_A, **formats}
        arguments = {"table": TABLE, "coefficients": FLOATS, "num": INT, "decay": FLOAT, **steps}
        yield ordinary_step, arguments, {"WIDTH": 10, "ROWS": 64, **formats}
    arguments = {"table": TABLE, "product": FLOATS, "numel": INT, "scaling": FLOAT, "decay": FLOAT}
    for aligned in (True, False):
        constants = {"WIDTH": 18, "COLUMNS": 2048, "WEIGHT": tl.bfloat16, "ALIGNED": aligned, "BLOCK": 1024}
        yield weight_update, arguments, constants
    for dtype, name in ((tl.float32, "*fp32"), (tl.bfloat16, "*bf16")):
        constants = {"DTYPE": dtype, "BLOCK": 1024}
        yield exchange, {"addresses": TABLE, "arriving": name, "leaving": name, "length": INT, "stride": INT}, constants


def compiled(kernel, arguments, constants, capability):
    """The kernel for one capability; sizes and pointers are multiples of 16, as they are in training."""
    signature = {**arguments, **dict.fromkeys(constants, "constexpr")}
    assert list(signature) == kernel.arg_names, f"{kernel.__name__} has arguments {kernel.arg_names}"
    round_ones = [i for i, kind in enumerate(arguments.values()) if kind != FLOAT]
    attributes = {(i,): [["tt.divisibility", 16]] for i in round_ones}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def widest_load_bytes(ptx: str) -> int:
    """Bytes of the widest load from global memory."""
    loads = re.findall(r"ld\.global(?:\.\w+)*?(?:\.v(\d))?\.b(\d+)", ptx)
    return max(int(count or 1) * int(bits) // 8 for count, bits in loads)


if __name__ == "__main__":
    for (kernel, arguments, constants), capability in itertools.product(cases(), CAPABILITIES):
        result = compiled(kernel, arguments, constants, capability)
        assert result.asm["cubin"], kernel.__name__
        shown = " ".join(f"{name}={value}" for name, value in constants.items())
        print(f"sm_{capability} {kernel.__name__} load={widest_load_bytes(result.asm['ptx'])} {shown}")
