"""The public names of TensorRT releases that we support but cannot install here, from their bindings' wheels.

`python tests/tensorrt_names.py` downloads the wheels (1 MB each) and rewrites tensorrt_names.json. The bindings are
imported beside empty stand-ins for the libraries that they link to, which is enough to list names.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSIONS = ("10.14.1.48.post1", "11.4.0.106")
FILE = Path(__file__).with_suffix(".json")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
LINKED = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry"),
    *("getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins"),
)


def names_of(module) -> dict[str, list[str]]:
    """Public names by class, and those of the module under ""; plugin classes and method tables left out."""
    public = [name for name in dir(module) if name[0] != "_"]
    classes = [name for name in public if isinstance(getattr(module, name), type) and "lugin" not in name]
    of_class = {name: [n for n in dir(getattr(module, name)) if n[0] != "_"] for name in classes}
    return {"": public, **of_class}


def released(version: str, folder: Path) -> dict:
    """sha256 and names of one release; raises CalledProcessError where the package index cannot be reached."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, f"tensorrt-cu13-bindings=={version}"], check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob(f"*-{version}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / version)
    stub = folder / "stub.c"
    stub.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in LINKED))
    for library in LIBRARIES:
        target = folder / version / f"lib{library}.so.{version.split('.')[0]}"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(target), str(stub)], check=True)
    code = "import json, tensorrt_names, tensorrt_bindings as t; print(json.dumps(tensorrt_names.names_of(t)))"
    paths = {"LD_LIBRARY_PATH": str(folder / version), "PYTHONPATH": f"{folder / version}:{FILE.parent}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **paths}, check=True, capture_output=True, text=True
    )
    return {"sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(), "names": json.loads(done.stdout)}


def all_released() -> dict[str, dict]:
    """Every supported release by its version."""
    with tempfile.TemporaryDirectory() as folder:
        return {version: released(version, Path(folder)) for version in VERSIONS}


if __name__ == "__main__":
    lines = json.dumps(all_released(), indent=1).replace("\n    ", " ").replace("\n   ]", "]")
    FILE.write_text(lines + "\n", encoding="utf-8")
