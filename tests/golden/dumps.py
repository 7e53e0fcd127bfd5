"""What each spec of the library compiles to, as text: `python tests/golden/dumps.py` writes it anew.

A change of these files is a change of the models that people have trained: it shows in the review.
"""

from __future__ import annotations

from pathlib import Path

from archsearch.compiler import compile_model
from archsearch.spec import load_spec, model_cost

LIBRARY = sorted((Path(__file__).parents[2] / "specs").glob("*.yaml"))
FOLDER = Path(__file__).parent


def dump(path: Path) -> str:
    """Hash, costs, and every parameter with its shape, in order."""
    spec = load_spec(path)
    total = model_cost(spec, 1024).total.as_dict()
    lines = [f"hash {spec.hash}", *(f"{name}@1024 {value}" for name, value in total.items())]
    for name, parameter in compile_model(spec).named_parameters():
        lines.append(f"{name} {'x'.join(map(str, parameter.shape))}")
    return "\n".join(lines) + "\n"


def write_anew() -> None:
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    for path in LIBRARY:
        (FOLDER / f"{path.stem}.txt").write_text(dump(path))


if __name__ == "__main__":
    write_anew()
