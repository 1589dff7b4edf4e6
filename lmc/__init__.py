"""lmc: linear mode connectivity of neural networks, modulo their permutation symmetries.

As a library, on any `torch.nn.Module` and its state dicts:

    symmetry = lmc.discover(model, example)                     # which hidden units can be permuted
    permutation = lmc.align(symmetry, fixed, moving)            # which permutation brings `moving` to `fixed`
    middle = lmc.interpolate(fixed, permutation.apply(moving), 0.5)
    lmc.barrier(model, fixed, permutation.apply(moving), batches)

Names are loaded when they are first used, so that `import lmc` itself costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmc.alignment import align as align
    from lmc.alignment.activation_matching import ActivationMatching as ActivationMatching
    from lmc.alignment.weight_matching import WeightMatching as WeightMatching
    from lmc.errors import UserError as UserError
    from lmc.evaluation.barrier import barrier as barrier
    from lmc.state import interpolate as interpolate
    from lmc.symmetry.discover import discover as discover
    from lmc.symmetry.permutation import Permutation as Permutation
    from lmc.symmetry.structure import Symmetry as Symmetry
    from lmc.symmetry.verify import verify as verify

_PUBLIC = {
    "ActivationMatching": "lmc.alignment.activation_matching",
    "Permutation": "lmc.symmetry.permutation",
    "Symmetry": "lmc.symmetry.structure",
    "UserError": "lmc.errors",
    "WeightMatching": "lmc.alignment.weight_matching",
    "align": "lmc.alignment",
    "barrier": "lmc.evaluation.barrier",
    "discover": "lmc.symmetry.discover",
    "interpolate": "lmc.state",
    "verify": "lmc.symmetry.verify",
}

__all__ = list(_PUBLIC)  # one list of public names, not two


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lmc' has no attribute {name!r}; it has {', '.join(_PUBLIC)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
