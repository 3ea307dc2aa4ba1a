"""Run by `make wheel-check` inside the bare environment: what the installed wheel must carry and must not need."""

import importlib.metadata
import importlib.resources
import sys

import mielin_cells

package = importlib.resources.files(mielin_cells)
for name in ("py.typed", "demo/data/flights-2013-01.csv.gz", "demo/data/README.md"):
    if not package.joinpath(name).is_file():
        sys.exit(f"the wheel lacks {name}: see [tool.hatch.build] in pyproject.toml")
if "site-packages" not in str(package):
    sys.exit(f"imported {package}, which is not the installed wheel")
if not importlib.metadata.metadata("mielin-cells")["License-Expression"]:
    sys.exit("the wheel's metadata names no licence")
for name in ("nats", "cyclopts", "rich", "psutil"):
    if name in sys.modules:
        sys.exit(f"`import mielin_cells` imports {name}: it is to be imported where it is first used")
print(f"wheel {importlib.metadata.version('mielin-cells')}: typed, with data")
