"""Tensors computed once from a module's weights. Knows nothing of what they mean."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

import torch
from torch import nn

T = TypeVar("T")


class DerivedModule(nn.Module, Generic[T]):
    """A module whose forward pass reads constants folded from its own weights.

    In evaluation `derived()` folds once and keeps the result until the weights are loaded,
    moved or trained; in training it folds on every call, so that gradients reach the weights.
    After changing weights by hand, call `eval()` on the whole model.
    """

    def __init__(self) -> None:
        super().__init__()
        self._derived: T | None = None

    @abstractmethod
    def derive(self) -> T:
        """Fold the constants from the present weights."""

    def derived(self) -> T:
        """The constants, folded from the weights as they are now."""
        if self.training:
            return self.derive()
        if self._derived is None:
            # Made outside inference mode, so that a later graph with gradients may read them.
            with torch.inference_mode(False), torch.no_grad():
                self._derived = self.derive()
        return self._derived

    def weights_changed(self) -> None:
        """Forget what was folded from the weights as they were."""
        self._derived = None

    def train(self, mode: bool = True) -> Self:
        self.weights_changed()
        return super().train(mode)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        self.weights_changed()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.weights_changed()
        super()._load_from_state_dict(*args, **kwargs)
