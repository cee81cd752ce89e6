"""Stand-ins for what SGLang imports and a plain text model on the CPU never calls. For test environments only.

The package index has no CPU build of sgl_kernel, and its torchvision and torchaudio are CUDA builds, which break on
import beside a CPU torch. Every name in a stand-in is a class that can be imported, inherited from and compared with;
using one says which.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Kind(type):
    def __getattr__(cls, name: str) -> Any:
        return _absent(f"{cls.__module__}.{cls.__name__}", name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{cls.__module__}.{cls.__name__} was called, and this environment has none")


def _absent(owner: str, name: str) -> Any:
    # Python's own questions (__file__, __wrapped__ …) must be answered as for something that has no such name.
    if name.startswith("__"):
        raise AttributeError(f"{owner} has no {name}")
    return _Kind(name, (), {"__module__": owner})


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return _absent(self.__name__, name)


class _Submodules(MetaPathFinder, Loader):
    """Whatever is imported below a stand-in is one too."""

    def __init__(self, package: str) -> None:
        self._below = package + "."

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.startswith(self._below) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in(package: str) -> None:
    """Turn the module of that name, which is just being imported, into a stand-in."""
    module = sys.modules[package]
    module.__class__ = _Module
    module.__path__ = []
    sys.meta_path.insert(0, _Submodules(package))
