"""Waits for a program that uses components to end; if it ended without leaving them, leaves for it. Run by ``shared_components``.

python -m patchwork_serving.guard APP PID STARTED
"""

from __future__ import annotations

import sys
import time

from patchwork_serving.config import Paths
from patchwork_serving.state import OwnProcess

LOOK_EVERY_S = 1.0


def main(name: str, client: OwnProcess) -> None:
    while client.is_running():
        time.sleep(LOOK_EVERY_S)
    from patchwork_serving import shared_components

    shared_components.leave(Paths.from_env(), name, client)


if __name__ == "__main__":
    main(sys.argv[1], OwnProcess(int(sys.argv[2]), float(sys.argv[3]), "client"))
