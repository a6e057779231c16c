"""Who may look into which room: the imports of every module, held against one table."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path.relative_to(ROOT).as_posix() for room in ("model", "pipeline", "flows") for path in (ROOT / room).rglob("*.py")
)
CODECS = [f"pipeline/{name}.py" for name in ("images", "container", "ifd", "jpeg", "png", "tiff_segments", "webp")]
RAY_OF_PIPELINE = ("cluster", "cluster_size", "connection", "meters", "process_group", "ray_dashboard", "train")
RAY = [*(f"pipeline/{name}.py" for name in RAY_OF_PIPELINE), "flows/ray_head.py", "flows/ray_jobs.py"]

# Where each of these may be imported; what is not named may be imported anywhere.
ALLOWED = {
    "flows": ["flows/*"],
    "pipeline": ["flows/*", "pipeline/*"],
    "prefect": ["flows/*"],
    "ray": RAY,
    "fsspec": ["pipeline/clouds.py", "pipeline/object_store.py"],
    **{library: ["pipeline/clouds.py"] for library in ["s3fs", "gcsfs", "adlfs"]},
    "tenacity": ["pipeline/retries.py"],
    "pyarrow": ["pipeline/*"],
    "duckdb": ["pipeline/*"],
    "PIL": [*CODECS, *(f"pipeline/{name}.py" for name in ("demo", "highlights", "pictures", "report"))],  # these draw
    "imagecodecs": CODECS,
    "tifffile": CODECS,
    "xml": [],  # what strangers write of it, as XMP and SVG, is carried over and never parsed
    # Whoever can write a file must not be able to run code by it.
    **{library: [] for library in ["pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "torch.load"]},
}


def imports(source: str, module: str) -> Iterator[str]:
    """Dotted names that a module imports anywhere in it, whatever the way; of `from a import b` both a and a.b."""
    package = Path(module).parent.parts
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(name, names, level):
                base = ".".join([*package[: len(package) - level + 1], *([name] if name else [])]) if level else name
                yield str(base)
                yield from (f"{base}.{alias.name}" for alias in names)
            case ast.Call(ast.Name("__import__") | ast.Attribute(attr="import_module"), [ast.Constant(name), *_]):
                yield str(name)
            case ast.Attribute(ast.Name("torch"), "load"):
                yield "torch.load"


def breaches(source: str, module: str) -> list[str]:
    """What a module imports that it may not."""
    return sorted(
        {
            f"{module} imports {name}"
            for name in imports(source, module)
            for guarded, rooms in ALLOWED.items()
            if f"{name}.".startswith(f"{guarded}.") and not any(fnmatch(module, room) for room in rooms)
        }
    )


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_room_may(module: str) -> None:
    assert breaches((ROOT / module).read_text(), module) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model/seed.py", "import pipeline.storage"),
        ("model/seed.py", "from pipeline import storage"),
        ("model/seed.py", "from ..pipeline import storage"),
        ("model/seed.py", "if TYPE_CHECKING:\n    import pyarrow"),
        ("model/deep/er.py", "import fsspec"),
        ("pipeline/jobs.py", "from flows.cli import main"),
        ("pipeline/jobs.py", "def run():\n    from ray import train"),
        ("pipeline/jobs.py", "importlib.import_module('prefect')"),
        ("pipeline/jobs.py", "__import__('s3fs')"),
        ("pipeline/denoise.py", "import PIL.Image"),
        ("pipeline/demo.py", "import tifffile"),
        ("flows/cli.py", "from PIL import Image"),
        ("flows/cli.py", "import ray.job_submission"),
        ("model/weights.py", "torch.load(path)"),
        ("model/weights.py", "from torch import load"),
        ("pipeline/cluster.py", "import pickle as p"),
        ("pipeline/images.py", "import xml.etree.ElementTree"),
    ],
)
def test_a_breach_is_found(module: str, source: str) -> None:
    assert len(breaches(source, module)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pipeline/cluster.py", "import ray"),
        ("pipeline/cluster.py", "from model.denoiser import Denoiser"),
        ("pipeline/jobs.py", "import raytracing, pickled\nfrom .storage import open_store\nload(path)"),
        ("flows/cli.py", "from pipeline.jobs import run_denoise"),
    ],
)
def test_what_is_allowed_is_no_breach(module: str, source: str) -> None:
    assert breaches(source, module) == []


def names_of(requirements: list[str]) -> set[str]:
    """Of the distributions, as they are compared."""
    return {re.split(r"[^\w.-]", each)[0].lower().replace("_", "-") for each in requirements}


def test_a_library_is_declared_if_and_only_if_it_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = names_of(project["dependencies"])
    optional = names_of([each for group in project["optional-dependencies"].values() for each in group])
    found = {name.partition(".")[0] for module in MODULES for name in imports((ROOT / module).read_text(), module)}
    libraries = {name for name in found if name not in {*sys.stdlib_module_names, "model", "pipeline", "flows"}}
    distributions = packages_distributions()

    used = {name: names_of(distributions.get(name, [name])) for name in libraries}

    assert {name for name, declared in used.items() if not declared & (needed | optional)} == set()
    unused = needed - set().union(*used.values())
    assert unused == {"fastapi", "sqlalchemy", "s3fs"}  # bounded for Prefect's sake; and what fsspec opens s3:// with


def test_every_room_is_walked() -> None:
    assert {"model/denoiser.py", "pipeline/storage.py", "pipeline/cluster.py", "flows/cli.py"} <= set(MODULES)


@pytest.mark.parametrize("module", ["flows.cli", "model", "pipeline"])
def test_importing_a_room_loads_no_heavy_library(module: str) -> None:
    heavy = {
        "torch",
        "ray",
        "numpy",
        "pyarrow",
        "PIL",
        "duckdb",
        "fsspec",
        "s3fs",
        "tenacity",
        "prefect",
        "imagecodecs",
        "tifffile",
    }
    script = f"import sys, {module}; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)

    assert heavy & set(done.stdout.split()) == set()
