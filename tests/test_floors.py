"""Who may import whom: the floors of the house, read from the imports of every file.

0 tensors, 1 data, 2 models, 3 judging and using, 4 running. A floor imports itself and lower ones.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "recbole_meta"

# A module's floor; a folder's floor is that of all files in it. ANY: importable from every floor.
ANY = -1
FLOORS = {
    "": ANY,  # recbole_meta/__init__.py runs before every other module
    "settings": ANY,
    "compat": ANY,
    "errors": ANY,
    "episode": 0,
    "inner_loop": 0,
    "fusion": 0,
    "posterior": 0,
    "data": 1,
    "model": 2,
    "evaluation": 3,
    "fused_recommender": 3,
    "serving": 3,
    "newcomer": 3,
    "said": 3,
    "saved_model": 3,
    "export": 3,
    "checkpoint": 4,
    "balancing": 4,
    "averaging": 4,
    "trainer": 4,
    "tracking": 4,
    "choice": 4,
    "stage": 4,
    "outcome": 4,
    "recbole_fitting": 4,
    "fitting": 4,
    "objective_fitting": 4,
    "ranker": 4,
    "behaviour_fitting": 4,
    "multitask": 4,
    "multitask_table": 4,
    "row_fitting": 4,
    "row_recbole": 4,
    "row_table": 4,
    "row_pages": 4,
    "fused": 4,
    "fused_page": 4,
    "fused_table": 4,
    "unit": 4,
    "study": 4,
    "search": 4,
    "judging": 4,
    "progress": 4,
    "room": 4,
    "sweep": 4,
    "terminal": 4,
    "quick_start": 4,
    "benchmark": 4,
    "reading": 4,
    "groups": 4,
    "cards": 4,
    "kept": 4,
    "report": 4,
    "cli": 4,
}

# What a floor may import from outside, on top of the standard library and the floors below.
TENSORS = {"torch", "torchjd"}
TABLES = {"numpy", "scipy", "pandas", "yaml", "tqdm", "filelock"}
OUTSIDE = {
    ANY: TENSORS | TABLES | {"recbole"},
    0: TENSORS,
    1: TENSORS | TABLES | {"recbole.data"},
    2: TENSORS | TABLES | {"recbole"},
    3: TENSORS | TABLES | {"recbole"},
    4: TENSORS | TABLES | {"recbole", "psutil"},
}
# Never, and not from one module though its floor may.
BANNED = {"recbole.quick_start": "it imports ray, which dies under numpy 2", "ray": "see recbole"}
BANNED_IN = {
    "data.protocol": {"recbole"},
    "data.history": {"recbole"},
    "report": {"torch", "torchjd", "recbole"},
    "multitask_table": {"torch", "torchjd", "recbole"},
    "fused_table": {"torch", "torchjd", "recbole"},
}
# Optional: imported inside the function that needs it.
OPTIONAL = {"gymnasium", "implicit", "mkdocs", "optuna", "plotly", "sentence_transformers"}
# Folders of one model per file, which know each other only as a variant knows its parent.
SHELVES = ("model.baseline", "model.meta", "model.multitask")


class Import(NamedTuple):
    line: int
    target: str  # the module, as far as files tell
    name: str | None  # what is taken from it, None for the module itself
    local: str  # how the file calls it
    top: bool  # runs when the file is imported


def within(module: str, parents: Iterable[str]) -> bool:
    return any(module == parent or module.startswith(parent + ".") for parent in parents)


def module_name(path: Path, package: Path) -> str:
    """``model/meta/maml.py`` is ``model.meta.maml``, ``data/__init__.py`` is ``data``."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    """Every import of a file, at any depth; ``root`` tells submodules from other names."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    late = {id(n) for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name
                yield Import(node.lineno, alias.name, None, local, id(node) not in late)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = path.relative_to(root).parts[: -node.level]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                local, below = alias.asname or alias.name, f"{base}.{alias.name}"
                place = root.joinpath(*below.split("."))
                is_module = place.is_dir() or place.with_suffix(".py").is_file()
                # `from recbole import quick_start`: no file here tells that it is a module.
                is_module |= below in BANNED or below in OUTSIDE[1]
                target, name = (below, None) if is_module else (base, alias.name)
                yield Import(node.lineno, target, name, local, id(node) not in late)


def bases_of(path: Path) -> set[str]:
    """What the classes of a file derive from, as written: ``MAML``, ``maml.MAML``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for base in node.bases
    }


def floor_of(module: str) -> int | None:
    return FLOORS.get(module.split(".")[0])


def breaches(root: Path) -> list[str]:
    """What the files of ``root/recbole_meta`` import and may not, as ``file:line: sentence``."""
    package, found = root / PACKAGE, []
    for path in sorted(package.rglob("*.py")):
        module, where = module_name(path, package), path.relative_to(root).as_posix()
        floor = floor_of(module)
        if floor is None:
            found.append(
                f"{where}:1: '{module}' has no floor: choose one in FLOORS of tests/test_floors.py"
            )
            continue
        for entry in imports_of(path, root):
            inside = within(entry.target, [PACKAGE])
            check = _inside if inside else _outside
            found += [f"{where}:{entry.line}: {said}" for said in check(module, floor, entry, path)]
    return list(dict.fromkeys(found))


def _inside(module: str, floor: int, entry: Import, path: Path) -> Iterator[str]:
    target = entry.target.removeprefix(PACKAGE).removeprefix(".")
    if target == "" and entry.name == "__version__":
        return
    other = floor_of(target)
    if other is None:
        yield f"'{entry.target}' is not a module of a known floor"
    elif other > floor:
        yield f"{_say(floor)} imports '{entry.target}' of {_say(other)}"
    elif target == "" and floor != ANY:
        yield "import from the module itself, not from the package"
    elif within(module, SHELVES) and path.name != "__init__.py" and within(target, SHELVES):
        bases = bases_of(path)
        if not any(base == entry.local or base.startswith(entry.local + ".") for base in bases):
            yield (
                f"a model imports '{entry.name or entry.target}' of a sibling and no class derives "
                "from it: what models share stands a floor below or in their base class"
            )


def _outside(module: str, floor: int, entry: Import, path: Path) -> Iterator[str]:
    if entry.target.split(".")[0] in sys.stdlib_module_names:
        return
    for banned, reason in BANNED.items():
        if within(entry.target, [banned]):
            yield f"'{entry.target}' is never imported: {reason}"
            return
    if within(entry.target, OPTIONAL):
        if entry.top or floor == 0:
            yield f"'{entry.target}' is optional: import it in the function that needs it"
    elif not within(entry.target, OUTSIDE[floor]):
        yield f"{_say(floor)} imports '{entry.target}', allowed: {sorted(OUTSIDE[floor])}"
    elif any(
        within(module, [name]) and within(entry.target, not_) for name, not_ in BANNED_IN.items()
    ):
        yield f"{module} imports '{entry.target}', which its floor may and it may not"


def _say(floor: int) -> str:
    return "what every floor imports" if floor == ANY else f"floor {floor}"


def test_no_file_breaches_its_floor():
    found = breaches(ROOT)
    assert not found, "\n".join(["", *found])


def test_ray_is_imported_nowhere_in_the_repository():
    folders = ["benchmarks", "examples", "tests", PACKAGE]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}:{entry.line}"
        for path in [*files, *ROOT.glob("*.py")]
        for entry in imports_of(path, ROOT)
        if within(entry.target, BANNED)
    ]
    assert not found


# Importing the one must not bring the other, through whatever modules and `__init__.py` files.
ABSENT = {name: "recbole" for name, floor in FLOORS.items() if floor == 0}
ABSENT |= {
    "data.protocol": "recbole",
    "data.history": "recbole",
    "report": "torch",
    "multitask_table": "torch",
    "fused_table": "torch",
}
PLACES = {name: ROOT / PACKAGE / name.replace(".", "/") for name in ABSENT}
HERE = [
    name
    for name, place in PLACES.items()
    if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
]


@pytest.mark.parametrize("module", HERE)
def test_importing_a_module_does_not_bring(module):
    absent = ABSENT[module]
    code = f"import sys, {PACKAGE}.{module}; sys.exit('{absent}' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or f"importing {module} imports {absent}"


BREACHES = [
    ("episode.py", "import numpy", "floor 0 imports 'numpy'"),
    ("episode.py", "def f():\n    from recbole_meta.data import prepare", "of floor 1"),
    ("episode.py", "from .trainer import Trainer", "'recbole_meta.trainer' of floor 4"),
    ("data/protocol.py", "from recbole.data.interaction import Interaction", "data.protocol impor"),
    ("data/prepare.py", "from recbole.config import Config", "floor 1 imports 'recbole.config'"),
    ("data/prepare.py", "from recbole import config", "floor 1 imports 'recbole'"),
    ("data/prepare.py", "from recbole_meta import serving", "'recbole_meta.serving' of floor 3"),
    ("data/prepare.py", "from .. import serving", "'recbole_meta.serving' of floor 3"),
    ("model/meta/anil.py", "from recbole_meta.model.meta.maml import MAML", "a sibling"),
    ("model/meta/anil.py", "from .maml import helper, MAML\nclass A(MAML): ...", "'helper'"),
    ("model/meta/anil.py", "from recbole_meta.model.baseline.pop import Pop", "a sibling"),
    ("model/meta/anil.py", "from recbole_meta.evaluation import metrics", "of floor 3"),
    ("serving.py", "from recbole_meta.quick_start import run", "of floor 4"),
    ("trainer.py", "from recbole.quick_start import run_recbole", "never imported"),
    ("trainer.py", "from recbole import quick_start", "never imported"),
    ("trainer.py", "def f():\n    import ray.tune", "never imported"),
    ("trainer.py", "import optuna", "'optuna' is optional"),
    ("trainer.py", "try:\n    import plotly.io\nexcept ImportError:\n    pass", "is optional"),
    ("trainer.py", "import requests", "floor 4 imports 'requests'"),
    ("report/units.py", "def f():\n    import torch", "report.units imports 'torch'"),
    ("errors.py", "from recbole_meta.episode import Examples", "of floor 0"),
    ("__init__.py", "from recbole_meta.trainer import Trainer", "of floor 4"),
    ("bandit.py", "import torch", "'bandit' has no floor"),
    ("policy/bandit.py", "import torch", "'policy.bandit' has no floor"),
]


@pytest.mark.parametrize(("file", "code", "said"), BREACHES)
def test_a_planted_breach_is_caught(tmp_path, file, code, said):
    plant(tmp_path, file, code)
    (found,) = breaches(tmp_path)
    assert found.startswith(f"{PACKAGE}/{file}:")
    assert said in found


SOUND = [
    ("episode.py", "import torch.nn as nn\nfrom recbole_meta.errors import nearest"),
    (
        "data/prepare.py",
        "from recbole.data import Interaction\nfrom recbole_meta import __version__",
    ),
    ("data/prepare.py", "from recbole_meta.episode import Examples\nfrom . import protocol"),
    ("model/meta/anil.py", "from recbole_meta.model.meta.maml import MAML\nclass A(MAML): ..."),
    (
        "model/meta/anil.py",
        "from recbole_meta.model.meta import maml\nclass A(maml.MAML[int]): ...",
    ),
    ("model/meta/__init__.py", "from recbole_meta.model.meta.maml import MAML"),
    ("report/page.py", "def f():\n    import plotly.io"),
    ("errors.py", "import recbole_meta.settings"),
]


@pytest.mark.parametrize(("file", "code"), SOUND)
def test_sound_imports_pass(tmp_path, file, code):
    plant(tmp_path, file, code)
    assert breaches(tmp_path) == []


def plant(root: Path, file: str, code: str) -> None:
    """A house of empty files with ``code`` in one of them."""
    house = ["trainer", "serving", "quick_start", "settings", "errors", "episode", "data/prepare"]
    house += ["data/protocol", "evaluation/metrics", "model/meta/maml", "model/baseline/pop"]
    for name in house:
        path = root / PACKAGE / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    path = root / PACKAGE / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")
