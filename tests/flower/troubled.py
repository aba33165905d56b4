"""A method as a plug-in, for processes of commands: one client breaks, a process is killed, or its whole group."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedsparse.methods.roles import client_task
from fedsparse.methods.static import Static

PLUGIN = {
    "METADATA": "Metadata-Version: 2.1\nName: troubled\nVersion: 1.0\n",
    "entry_points.txt": "[fedsparse.methods]\ntroubled = troubled:Troubled\n",
}


@dataclass(frozen=True, kw_only=True)
class Troubled(Static):
    """Static masks; client `broken` raises, and a process that finds the file `<client>-<round>` kills itself.

    Where the file says `group`, it kills all processes of its group in that moment.
    """

    name: ClassVar[str] = "troubled"
    broken: int = -1
    folder: str = ""

    @client_task
    def train(self, client):
        if client.id == self.broken:
            raise ValueError("this client is broken")
        order = Path(self.folder, f"{client.id}-{client.round}")
        if order.exists():
            everyone = order.read_text() == "group"
            order.rename(order.with_suffix(".obeyed"))
            os.killpg(os.getpgid(0), signal.SIGKILL) if everyone else os.kill(os.getpid(), signal.SIGKILL)
        return super().train(client)


def install(folder: Path) -> Path:
    """A folder for PYTHONPATH with the plug-in in it."""
    about = folder / "troubled-1.0.dist-info"
    about.mkdir(parents=True)
    for name, text in PLUGIN.items():
        (about / name).write_text(text)
    (folder / "troubled.py").write_text(Path(__file__).read_text())
    return folder


def left_over(home: Path) -> list[str]:
    """Command lines of the processes that work with Flower's files in `home`; Linux knows, others are not asked."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"FLWR_HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found
