"""Draw a run's dashboard, as it stands, into an SVG that needs no fonts from elsewhere.

python benchmarks/capture_dashboard.py RUN OUT.svg [--width 120] [--height 40]
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from archsearch.study import Study
from archsearch.ui.dashboard import render

FONT_FACES = re.compile(r"@font-face \{\{.*?\}\}", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=120)
    parser.add_argument("--height", type=int, default=40)
    arguments = parser.parse_args()
    console = Console(
        record=True,
        width=arguments.width,
        height=arguments.height,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    console.print(render(Study.read(arguments.run), arguments.width, arguments.height))
    layout = FONT_FACES.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code", "DejaVu Sans Mono, Menlo, Consolas")
    arguments.out.write_text(console.export_svg(title="archsearch sweep", code_format=layout))


if __name__ == "__main__":
    main()
