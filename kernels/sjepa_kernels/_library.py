# SPDX-License-Identifier: Apache-2.0
"""Registers fused ops with torch, and bypasses the dispatcher in eager mode.

A registered op is `torch.library.custom_op` with a fake and an autograd formula, which is what
`torch.compile` needs. In eager mode the dispatcher costs more than some kernels, so each call runs
the body, or a plain `autograd.Function` around it, directly. (`triton_op` is not used: it cannot
run under the Triton interpreter inside a compiled graph.)
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

NAMESPACE = "sjepa"


class Op:
    """One fused op. Call it with positional arguments only.

    Args:
        name: Registered as `sjepa::name`.
        body: Computes the outputs; annotated, because the schema is inferred. Outputs never alias
            inputs.
        fake: Takes the same arguments and returns empty tensors of the right shape, dtype and
            device; needs no annotations. None for a body that returns nothing.
        mutates: Names of the arguments the body writes to.
        setup: `setup(ctx, inputs, output)`, saves what the backward reads.
        backward: `backward(ctx, *grads)`, one gradient or None for each input.
    """

    def __init__(
        self,
        name: str,
        body: Callable[..., Any],
        fake: Callable[..., Any] | None,
        *,
        mutates: Iterable[str] = (),
        setup: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
    ) -> None:
        self.body = body
        definition = torch.library.custom_op(
            f"{NAMESPACE}::{name}", body, mutates_args=tuple(mutates)
        )
        definition.register_fake(fake or _nothing)
        self.function: Any = None
        if backward is not None:
            assert setup is not None
            definition.register_autograd(backward, setup_context=setup)
            self.function = type(
                name,
                (torch.autograd.Function,),
                {
                    "forward": staticmethod(body),
                    "setup_context": staticmethod(setup),
                    "backward": staticmethod(once_differentiable(backward)),
                },
            )
        self.registered = getattr(getattr(torch.ops, NAMESPACE), name).default

    def __call__(self, *args: Any) -> Any:
        """Run the op: through the dispatcher while compiling or faking, directly otherwise."""
        if not is_direct(args):
            return self.registered(*args)
        if self.function is not None and torch.is_grad_enabled() and any(map(_needs_grad, args)):
            return self.function.apply(*args)
        return self.body(*args)


def is_direct(args: Iterable[Any]) -> bool:
    """Whether a call with these arguments skips the dispatcher."""
    return not torch.compiler.is_compiling() and all(map(_is_plain, args))


def _nothing(*_: Any) -> None:
    """The fake of a body that only writes to its arguments."""


_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))


def _is_plain(arg: object) -> bool:
    """Whether an argument holds no tensor subclass (fake, functional), whose memory is not real."""
    kinds = set(map(type, arg)) if isinstance(arg, list) else (type(arg),)
    return all(kind in _PLAIN or not issubclass(kind, torch.Tensor) for kind in kinds)


def _needs_grad(arg: object) -> bool:
    return isinstance(arg, torch.Tensor) and arg.requires_grad
