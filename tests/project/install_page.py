"""Installs the package as the tutorial says, from the wheels in a folder, in an environment of its own.  `make wheel-check` runs it.

python tests/project/install_page.py build/wheel
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
THEN = """
mielin --version
python -m pytest --version
nats-server --version
"""
"""What the rest of the tutorial uses."""


def main(wheels: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "tutorial.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, "the tutorial has one block of commands that install"
    environment = {**os.environ, "PIP_FIND_LINKS": str(wheels.resolve()), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    with tempfile.TemporaryDirectory(prefix="tutorial-") as folder:
        subprocess.run(["bash", "-euxc", blocks[0] + THEN], cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
