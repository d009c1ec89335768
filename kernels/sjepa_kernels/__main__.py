# SPDX-License-Identifier: Apache-2.0
"""`python -m sjepa_kernels`: check every op on this machine against float64."""

from sjepa_kernels.selfcheck.checks import main

raise SystemExit(main())
