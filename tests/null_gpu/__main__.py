"""`python -m tests.null_gpu SCRIPT [ARGS]`, also `-m MODULE` or `-c CODE`: Python on the null GPU.

From the project's root, by an interpreter that has a CUDA build of torch.
"""

from __future__ import annotations

import os
import sys

from tests.null_gpu.build import Unavailable, build, environment


def main() -> None:
    """Replace this process by one on the null GPU, or say why there is none (exit code 3)."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        folder = build()
    except Unavailable as error:
        print(f"no null GPU: {error}", file=sys.stderr)
        sys.exit(3)
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment(folder))


if __name__ == "__main__":
    main()
