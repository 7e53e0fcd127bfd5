"""How training fails. Importable without torch, so that a driver can name the cause."""

from __future__ import annotations


class TrainingFailed(RuntimeError):
    """Training cannot go on. kind: a short cause, such as "non-finite loss"; step: where it happened."""

    def __init__(self, kind: str, message: str, step: int):
        super().__init__(f"{kind} at step {step}: {message}")
        self.kind = kind
        self.message = message
        self.step = step

    def __reduce__(self) -> tuple[type[TrainingFailed], tuple[str, str, int]]:
        # Exceptions cross process borders; the default would lose the arguments.
        return type(self), (self.kind, self.message, self.step)
