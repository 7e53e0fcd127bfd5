"""Layers that read another layer's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from archsearch.spec.errors import FieldError
from archsearch.spec.layers.base import Layer, Size


class GatedMemory(Layer):
    """The gated memory unit of SambaY (arXiv 2507.06607): y = W_o (m * silu(W_i x)), with m the memory of
    another layer at the same token, which is what that layer read from its state, before gate, norm and
    output projection. It has no state of its own.

    memory_from: id of the layer above whose memory it reads. width: channels of that memory; it follows from
    the layer.
    """

    kind = "gated_memory"
    family = "ssm"
    symbol = "U"
    glyph = "U"
    references: ClassVar[Mapping[str, str]] = {"memory": "memory_from"}

    memory_from: str | None = None
    width: Size | None = None

    def reading(self, sources: Mapping[str, Layer], d_model: int) -> GatedMemory:
        if "memory" not in sources:
            return self.model_copy(update={"width": None})
        width = sources["memory"].inner_width(d_model)
        if self.width not in (None, width):
            raise FieldError("width", f"the memory has {width} channels, not {self.width}; width may be left")
        return self.model_copy(update={"width": width})

    def resolve(self, d_model: int) -> GatedMemory:
        if self.width is None:
            raise FieldError("memory_from", "it reads another layer's memory; give that layer's id")
        return self

    def inner_width(self, d_model: int) -> int:
        assert self.width, "read the source first"
        return self.width

    def projections(self, d_model: int) -> dict[str, tuple[int, ...]]:
        return {"in_proj": (self.inner_width(d_model),)}

    def params(self, d_model: int, project: bool = True) -> int:
        return self.inner_width(d_model) * (self.input_width(d_model) + (d_model if project else 0))

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        return 2 * self.params(d_model, project)
