"""What is installed is what stands in the tree, and what CI runs is what the README says."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from importlib.metadata import requires
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from recbole_meta.settings import properties_folder

ROOT = Path(__file__).resolve().parents[1]
PROPERTIES = sorted(path.relative_to(ROOT) for path in (ROOT / "properties").rglob("*.yaml"))


@pytest.fixture(scope="module")
def setup_cfg() -> ConfigParser:
    parser = ConfigParser(comment_prefixes=("#",))
    assert parser.read(ROOT / "setup.cfg")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for line in lines(text)]


def pins() -> dict[str, str]:
    """The versions of constraints.txt by canonical name; anything but ``name==version`` raises."""
    kept = [line for line in lines((ROOT / "constraints.txt").read_text()) if line[0] != "#"]
    pairs = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in kept]
    assert None not in pairs, kept[pairs.index(None)]
    return {canonicalize_name(pair[1]): pair[2] for pair in pairs if pair}


# setup.cfg and the tree


def test_every_package_of_the_tree_is_listed(setup_cfg):
    tree = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "recbole_meta").rglob("__init__.py")
    }
    listed = lines(setup_cfg["options"]["packages"])
    assert sorted(listed) == sorted({*tree, "recbole_meta.properties"})


def test_every_module_is_in_a_package():
    """A folder without ``__init__.py`` works in a checkout and is missing from a wheel."""
    folders = {path.parent for path in (ROOT / "recbole_meta").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_settings_are_found_in_the_checkout():
    assert properties_folder() == ROOT / "properties"


def test_entry_point_names_a_function(setup_cfg):
    entry = setup_cfg["options.entry_points"]["console_scripts"].strip()
    command, module, function = re.fullmatch(r"(\S+) = ([\w.]+):(\w+)", entry).groups()
    assert command == "recbole-meta"
    package = ROOT / module.replace(".", "/") / "__init__.py"
    tree = ast.parse(package.read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_pyproject_says_how_to_build_and_to_lint_and_nothing_else():
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(content) == {"build-system", "tool"}
    assert set(content["tool"]) == {"ruff"}


# dependencies


def test_later_pythons_get_what_recbole_needs_but_ray(setup_cfg):
    ours = requirements(setup_cfg["options"]["install_requires"])
    on_312 = {
        canonicalize_name(need.name): need.specifier
        for need in ours
        if need.marker is None or need.marker.evaluate({"python_version": "3.12"})
    }
    assert not {"recbole", "ray"} & set(on_312)
    for text in requires("recbole"):
        need = Requirement(text)
        name = canonicalize_name(need.name)
        if name == "ray" or need.marker:  # a marker here is an extra of RecBole's
            continue
        version = pins()[name]
        assert on_312[name].contains(version) and need.specifier.contains(version), name
    assert "setuptools" in on_312  # thop imports distutils


def test_the_tested_python_gets_recbole_itself(setup_cfg):
    ours = requirements(setup_cfg["options"]["install_requires"])
    (recbole,) = (need for need in ours if need.name == "recbole")
    assert str(recbole.specifier) == "==1.2.1"
    assert recbole.marker.evaluate({"python_version": "3.11"})


def test_constraints_pin_every_dependency_to_an_allowed_version(setup_cfg):
    tested, extras = pins(), setup_cfg["options.extras_require"]
    assert tested["torch"] == "2.13.0"
    needs = requirements(setup_cfg["options"]["install_requires"])
    needs += [need for extra in extras.values() for need in requirements(extra)]
    wrong = [str(n) for n in needs if not n.specifier.contains(tested[canonicalize_name(n.name)])]
    assert not wrong


# the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the tree, so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("recbole_meta", "properties"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    build += ["--quiet", "--disable-pip-version-check", "--wheel-dir", str(target), str(source)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("*.whl")
    return built


def test_wheel_holds_every_module_and_every_yaml(wheel):
    with ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "recbole_meta").rglob("*.py")}
    settings = {f"recbole_meta/{path.as_posix()}" for path in PROPERTIES}
    assert settings, "no settings in properties/"
    assert {*modules, *settings, "recbole_meta/py.typed"} <= inside
    assert any(name.endswith("LICENSE") for name in inside)
    assert {name.split("/")[0] for name in inside if ".dist-info" not in name} == {"recbole_meta"}


def test_unpacked_wheel_finds_its_own_settings(wheel, tmp_path):
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    kind, name = PROPERTIES[0].parts[1], PROPERTIES[0].stem
    code = (
        "from recbole_meta.settings import load_properties, properties_folder\n"
        f"print(properties_folder())\nprint(load_properties({kind!r}, {name!r}) != {{}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "site" / "recbole_meta" / "properties"
    assert done.stdout.splitlines() == [str(folder.resolve()), "True"]


# CI


def test_ci_runs_the_two_lines_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    installs = re.findall(r"^run '(pip install .*)'$", script, re.MULTILINE)
    assert len(installs) == 2
    readme = [line.strip() for line in (ROOT / "README.md").read_text("utf-8").splitlines()]
    assert [line for line in installs if line not in readme] == []


def test_ci_fails_without_the_data_sets(tmp_path):
    absent = str(tmp_path / "absent")
    done = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run")],
        env={**os.environ, "RECBOLE_META_DATA": absent},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert absent in done.stderr


@pytest.mark.parametrize(
    ("folder", "required", "outcome"),
    [
        ("absent", "", "2 skipped"),
        ("absent", "1", "2 errors"),  # pytest's word for a failure while setting up
        ("present", "1", "2 passed"),
    ],
)
def test_data_tests_skip_or_fail_where_the_data_sets_are_absent(
    tmp_path, folder, required, outcome
):
    (tmp_path / "present").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n@pytest.mark.data\ndef test_marked(): ...\n\n"
        "def test_fixture(data_path): assert data_path.is_dir()\n"
    )
    environment = {
        **os.environ,
        "RECBOLE_META_DATA": str(tmp_path / folder),
        "RECBOLE_META_REQUIRE_DATA": required,
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert outcome in done.stdout.splitlines()[-1]
    assert (str(tmp_path / "absent") in done.stdout) == (folder == "absent")
