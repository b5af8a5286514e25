"""Functions replaced in processes that a test does not start itself, such as Ray workers."""

from pathlib import Path

WAITING = """
import ctypes, os, pathlib, sys, threading, time

def hold_still():
    ctypes.PyDLL(None).sleep(1000)  # holds the GIL, as a stuck library may

{code}

def wait_and_replace():
    while not hasattr(sys.modules.get({module!r}), {name!r}):
        time.sleep(0.01)
    module = sys.modules[{module!r}]
    module.{name} = instead_of(module.{name})

threading.Thread(target=wait_and_replace, daemon=True).start()
"""


def write_patch(folder: Path, module: str, name: str, code: str) -> None:
    """Write a sitecustomize.py that replaces a function in every Python process with `folder` on its path.

    Args:
        folder: Folder to write; created if needed.
        module: Module whose function is replaced, once a process has imported it.
        name: Name of the function.
        code: Source that defines `instead_of(function)`, which returns the replacement. It may use
            `hold_still()`, os, pathlib and sys.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(WAITING.format(module=module, name=name, code=code))
