# SPDX-License-Identifier: Apache-2.0
"""How the threads of the tensor operations wait for each other, said before torch loads OpenMP."""

import sys
from collections.abc import MutableMapping

# What a user may have set, for GNU's OpenMP and for Intel's and LLVM's.
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# GNU's OpenMP spins 300,000 times, which takes milliseconds, before it sleeps. On a machine that
# has other work, the thread that is waited for cannot run where another one spins. Ten thousand and
# less cost a machine without other work up to a tenth of its speed, this nothing that was seen
# (`benchmarks/LOG.md`).
SPINS = "100000"


def let_threads_sleep(environment: MutableMapping[str, str]) -> bool:
    """Have OpenMP's threads sleep when they wait for longer; returns whether it was set.

    Nothing is done where the user has decided, or where torch, which reads it, is loaded already.
    """
    if "torch" in sys.modules or any(name in environment for name in SETTINGS):
        return False
    environment["GOMP_SPINCOUNT"] = SPINS
    return True
