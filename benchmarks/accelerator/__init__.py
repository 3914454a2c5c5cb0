"""One command that measures the library on an accelerator, in at most eight minutes on a bare machine.

    python -m benchmarks.accelerator [--smoke] [--parts encode,train] [--budget-s 480] [--out DIR]

Each part of `parts.PARTS` is a module whose `rows(bench)` yields one row per measurement. It runs in a process of its
own with a time limit, and every row is on disk before the next is begun, so that a crash, a full memory or the end of
the time takes no other result along. After every part `summary.md` and `results.json` are written anew.

A part's peer, PyTorch on the same device, answers from a second process (`peers`), which takes turns with ours.
"""
