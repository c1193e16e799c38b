"""Kernels of Triton as a GPU of compute capability 9.0 would run them: compiled here, and not run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def compiled(kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any]) -> str:
    """The PTX of a kernel, from which machine code was made, too.

    :param types: of arguments, as Triton names them; of others they are pointers to bfloat16.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {**types, **dict.fromkeys(constants, "constexpr")}
    signature = {name: kinds.get(name, "*bf16") for name in kernel.arg_names}
    even = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name in ("width", "size")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=even)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert made.asm["cubin"]
    return str(made.asm["ptx"])


def waits_first(assembly: str) -> bool:
    """Whether a kernel lets the next one be launched, and waits, before it reads or writes memory."""
    first = re.search(r"\b(ld|st|atom|red)\.global|\bcp\.async", assembly)
    before = assembly[: first.start()] if first else assembly
    calls = re.findall(r"griddepcontrol\.(\w+)", assembly)
    return calls == ["launch_dependents", "wait"] and before.count("griddepcontrol.") == 2
