"""Functions replaced in processes that a test does not start itself."""

from pathlib import Path

WAITING = """
import ctypes, os, pathlib, sys, threading, time

def hold_still():
    ctypes.PyDLL(None).sleep(1000)  # with the GIL held, as a library that is stuck may do

{code}

def wait_and_replace():
    while not hasattr(sys.modules.get({module!r}), {name!r}):
        time.sleep(0.01)
    module = sys.modules[{module!r}]
    module.{name} = instead_of(module.{name})

threading.Thread(target=wait_and_replace, daemon=True).start()
"""


def write_patch(folder: Path, module: str, name: str, code: str) -> None:
    """Every Python process with `folder` on its path gets, once it has imported `module`, what
    `instead_of(function)` of `code` returns in place of its function `name`. `hold_still()` is at hand there,
    and os, pathlib and sys.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(WAITING.format(module=module, name=name, code=code))
