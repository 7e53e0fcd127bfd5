"""How the branches of a parallel block become one stream: one class a merge.

Every merge may norm each branch (`norm`) and scale it (`scale`) first. With `projection: separate` each
branch keeps its own output projection and the merge sees d_model features a branch; with `shared` the
branches hand over their inner features and the merge owns the one projection back to d_model
(arXiv 2510.04800 compares these). The widths below are those of the features a merge sees.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from archsearch.spec.errors import FieldError, nearest, quoted, refuse, shown, validate
from archsearch.spec.layers import Size, Spec, mean_keys

Widths = tuple[int, ...]


class Merge(Spec):
    """Fields of every merge.

    norm: RMS norm of each branch. scale: a learned factor a branch, one number or one a channel.
    projection: whether branches keep their own output projections.
    """

    kind: ClassVar[str] = ""
    equal_widths: ClassVar[bool] = True

    norm: bool = False
    scale: Literal["none", "scalar", "vector"] = "none"
    projection: Literal["separate", "shared"] = "separate"

    def resolve(self, d_model: int, widths: Widths, families: tuple[set[str], ...]) -> Any:
        """A copy with derived defaults, checked against the branches. Raises `FieldError`.

        families: for each branch, the words that name it: its first layer's kind and family.
        """
        if self.equal_widths and len(set(widths)) > 1:
            raise FieldError(
                "projection",
                f"{self.kind} adds branches of unequal inner widths {quoted(widths)}; use projection: "
                "separate, concat, or equal widths",
            )
        return self

    def out_width(self, widths: Widths) -> int:
        return widths[0]

    def projects(self) -> bool:
        """Whether the merge ends in a projection of its own."""
        return self.projection == "shared"

    def params(self, d_model: int, widths: Widths) -> int:
        count = sum(widths) if self.norm else 0
        count += {"none": 0, "scalar": len(widths), "vector": sum(widths)}[self.scale]
        return count + (self.out_width(widths) * d_model if self.projects() else 0)

    def flops(self, d_model: int, widths: Widths, context: int) -> float:
        return 2 * self.out_width(widths) * d_model if self.projects() else 0

    def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
        return 0


class Sum(Merge):
    """b_1 + b_2 + ..."""

    kind = "sum"


class Mean(Merge):
    """(b_1 + ... + b_k) / k."""

    kind = "mean"


class Subtract(Merge):
    """b_1 - b_2."""

    kind = "subtract"

    def resolve(self, d_model: int, widths: Widths, families: tuple[set[str], ...]) -> Any:
        _two(self, widths)
        return super().resolve(d_model, widths, families)


class Concat(Merge):
    """W [b_1; ...; b_k]: the branches side by side, projected to d_model."""

    kind = "concat"
    equal_widths = False

    def out_width(self, widths: Widths) -> int:
        return sum(widths)

    def projects(self) -> bool:
        return True


class Gate(Merge):
    """sum_i g_i * b_i with g a softmax over branches.

    by: one learned logit a branch (scalar), one a branch and channel (vector), or logits that a linear map
    of the block's input gives for each token (token).
    """

    kind = "gate"

    by: Literal["scalar", "vector", "token"] = "scalar"

    def params(self, d_model: int, widths: Widths) -> int:
        own = {"scalar": len(widths), "vector": sum(widths), "token": len(widths) * d_model}[self.by]
        return super().params(d_model, widths) + own

    def flops(self, d_model: int, widths: Widths, context: int) -> float:
        own = 2 * len(widths) * d_model if self.by == "token" else 0
        return super().flops(d_model, widths, context) + own


class NormedMean(Merge):
    """Mean of RMS-normed branches, each head normed by itself (Hymba, arXiv 2411.13676, has one head).

    heads: equal parts of a branch's features, each with an RMS of its own.
    """

    kind = "normed_mean"

    norm: bool = True
    heads: Size = 1

    def resolve(self, d_model: int, widths: Widths, families: tuple[set[str], ...]) -> Any:
        if not self.norm:
            raise FieldError("norm", "normed_mean without its norm is `mean`")
        for width in widths:
            if width % self.heads:
                raise FieldError("heads", f"{self.heads} heads do not divide the width {width}")
        return super().resolve(d_model, widths, families)


class CrossAttention(Merge):
    """One branch asks, the other is asked: b_q + W_o attention(W_q b_q, W_k b_kv, W_v b_kv), causal.

    The idea is from arXiv 2510.26912, whose exact form is not public; this form is archsearch's own: both
    branches are RMS-normed before the projections, no positions are added (the branches carry them), and
    the asking branch is kept as a residual unless `residual` is false.

    query: the branch that asks, by index or by the kind or family (ssm, attention) of its first layer.
    heads, kv_heads, window: as for attention. residual: whether the asking branch is added to the answer.
    """

    kind = "cross_attention"

    norm: bool = True
    query: int | str = Field(default=0, union_mode="left_to_right")
    heads: Size | None = None
    kv_heads: Size | None = None
    window: int | None = Field(default=None, ge=1)
    residual: bool = True

    @field_validator("query", mode="before")
    @classmethod
    def _is_a_branch(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | str):
            refuse((), f"expected 0, 1 or the word that names a branch, found {shown(value)}", value)
        return value

    def resolve(self, d_model: int, widths: Widths, families: tuple[set[str], ...]) -> Any:
        _two(self, widths)
        if self.projection == "shared":
            raise FieldError("projection", "cross_attention reads branches of d_model; expected separate")
        heads = self.heads or max(1, d_model // 64)
        kv_heads = self.kv_heads or heads
        if d_model % heads:
            raise FieldError("heads", f"{heads} heads do not divide d_model {d_model}")
        if heads % kv_heads:
            raise FieldError("kv_heads", f"{kv_heads} kv_heads do not divide {heads} heads")
        update = {"heads": heads, "kv_heads": kv_heads, "query": self._asking(families)}
        return self.model_copy(update=update)

    def _asking(self, families: tuple[set[str], ...]) -> int:
        if isinstance(self.query, int):
            if not 0 <= self.query < len(families):
                raise FieldError("query", f"branch {self.query} of {len(families)}; expected 0 or 1")
            return self.query
        named = [i for i, words in enumerate(families) if self.query in words]
        if not named:
            raise FieldError(
                "query", f"no branch is {self.query!r}{nearest(self.query, set().union(*families))}"
            )
        if len(named) > 1:
            raise FieldError("query", f"both branches are {self.query!r}; expected 0 or 1")
        return named[0]

    def _kv_width(self, d_model: int) -> int:
        assert self.heads is not None, "resolve the merge first"
        assert self.kv_heads is not None
        return d_model // self.heads * self.kv_heads

    def params(self, d_model: int, widths: Widths) -> int:
        return super().params(d_model, widths) + 2 * d_model * (d_model + self._kv_width(d_model))

    def flops(self, d_model: int, widths: Widths, context: int) -> float:
        projections = 4 * d_model * (d_model + self._kv_width(d_model))
        return projections + 4 * d_model * mean_keys(context, self.window)

    def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
        held = min(context, self.window) if self.window else context
        return 2 * self._kv_width(d_model) * held * itemsize


def _two(merge: Merge, widths: Widths) -> None:
    if len(widths) != 2:
        raise FieldError(
            "", f"{merge.kind} merges two branches, found {len(widths)}; nest parallels for more"
        )


MERGES: dict[str, type[Merge]] = {
    merge.kind: merge for merge in (Sum, Mean, Subtract, Concat, Gate, NormedMean, CrossAttention)
}


def parse_merge(value: Any) -> Merge:
    """`mean`, or `{gate: {by: token}}`."""
    if isinstance(value, Merge):
        return value
    fields: Any = {}
    if isinstance(value, str):
        word = value
    elif isinstance(value, dict) and len(value) == 1:
        ((word, fields),) = value.items()
    else:
        refuse((), f"a merge is a word or one `kind: {{fields}}`, found {shown(value)}", value)
    if word not in MERGES:
        refuse((word,), f"unknown merge {word!r}{nearest(word, MERGES)}", value)
    return validate(MERGES[word], {} if fields is None else fields, (word,))
