"""Whether a compiled program updates a buffer in place."""

import re


def rewritten(compiled, shape: str) -> list[str]:
    """The instructions of `compiled` that make a whole array of `shape`, such as "f32[8,3]", anew.

    Names of what is there already and writes of some rows into it are none of them. What stands inside a fusion counts
    as the fusion.
    """
    found, fused = [], False
    for line in compiled.as_text().splitlines():
        if line.endswith("{"):
            fused = "fused_computation" in line or "wrapped_" in line
        made = re.match(rf"\s+(?:ROOT )?%(\S+) = {re.escape(shape)}\S* ([\w-]+)", line)
        if made and not fused:
            name, opcode = made.groups()
            is_write = "scatter" in name + opcode or "dynamic-update-slice" in name + opcode
            if not is_write and opcode not in ("parameter", "get-tuple-element", "bitcast"):
                found.append(line.strip())
    return found
