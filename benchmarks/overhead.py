"""What does KCD add to a training step, on this device?

    python benchmarks/overhead.py [--quick] [--out DIR] [--device cuda] [--amp [float16|bfloat16]] [--compile]
    python benchmarks/overhead.py --teacher MODULE:FUNCTION --student MODULE:FUNCTION --input 3,224,224 --classes 1000

One real distillation step (teacher forward, student forward and backward, SGD), taken in turn by each
arm in every round, so that the machine's noise hits all of them: plain KD, KCD, the authors' recording,
and InfoBatch's. The last two are written from their published descriptions. Reported are medians per
step; the ratio to plain KD of the same round, with a bootstrap confidence interval; what an arm's recording
adds by itself; ATen operations, synchronisations and bytes to the host of that, counted on (fake) CUDA
tensors; memory per sample; and what the end of a stage costs. With --device cuda, also the kernels and
synchronisations of the recording, counted there, and peak memory.

The second form measures your own models. Your repository need not be installed: modules are found from the
working directory.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    if "torch" not in sys.modules:  # which may take seconds
        print("loading torch", file=sys.stderr, flush=True)
    from _overhead import command

    command.main(__doc__, arguments)


if __name__ == "__main__":
    main()
