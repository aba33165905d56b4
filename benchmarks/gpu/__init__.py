"""The GPU protocol: one command, stages with limits, a record that is on disk after each of them.

`python -m benchmarks.gpu_run --budget 540 --out run.json` measures; `python -m benchmarks.gpu_table run.json` prints.

    protocol    the stages, their limits, and which are cut when time is short
    runner      each stage as a process of its own, ended at its limit
    worker      that process
    stages/     what each stage does
    kinds       the ways to use fedsparse that are measured: a new kernel is one entry here
    roofline    what a device needs for bytes and instructions
    work        those of our products, counted
    *_work      those of all other kernels, ours and torch's
    estimates   what these say of a whole network
    table       the record as Markdown
"""
