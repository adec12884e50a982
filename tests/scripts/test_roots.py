"""scripts/roots: the mirror is the machine's own, and the table of recipes makes sense."""

import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.scripts

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "roots"


@pytest.fixture(scope="module")
def roots() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("vmcraft_scripts_roots", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


DEB822 = """\
# The main archive
Types: deb deb-src
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""


def test_deb822_stanzas(roots: ModuleType) -> None:
    assert roots.parse_deb822(DEB822) == [
        roots.Source("http://mirror.example/debian/", ("bookworm", "bookworm-updates"), ("main", "contrib")),
        roots.Source("http://mirror.example/debian-security", ("bookworm-security",), ("main",)),
    ]


def test_one_line_sources(roots: ModuleType) -> None:
    text = "# deb http://x bookworm main\n\ndeb-src http://m bookworm main\n"
    text += "deb [arch=amd64 signed-by=/k] http://m/debian bookworm main contrib # why\n"
    assert roots.parse_list(text) == [roots.Source("http://m/debian", ("bookworm",), ("main", "contrib"))]


def test_the_mirror_is_the_one_that_the_machine_takes_debian_from(
    roots: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("VMCRAFT_MIRROR", raising=False)
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "a-vendor.list").write_text("deb https://vendor.example/linux bookworm main\n")
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d" / "debian.sources.save").write_text("deb http://old.example/debian bookworm main\n")
    sources = roots.configured_sources(str(tmp_path))
    debian = {"ID": "debian", "VERSION_CODENAME": "bookworm"}
    assert roots.choose_mirror(sources, debian) == "http://mirror.example/debian"
    assert roots.choose_mirror(sources, {"ID": "ubuntu", "VERSION_CODENAME": "noble"}) == roots.DEFAULT_MIRROR
    assert roots.choose_mirror([], debian) == roots.DEFAULT_MIRROR
    monkeypatch.setenv("VMCRAFT_MIRROR", "http://here.example/debian")
    assert roots.choose_mirror(sources, debian) == "http://here.example/debian"


def test_the_hash_of_a_recipe_names_all_of_it(roots: ModuleType) -> None:
    digests = [
        roots.Recipe(*arguments).digest() for arguments in (("a", ("b", "c")), ("a", ("bc",)), ("b", ("b", "c")))
    ]
    assert len(set(digests)) == 3
    assert set(roots.ALL) <= set(roots.RECIPES)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    done = subprocess.run([str(SCRIPT), "slink"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no such root: slink; there are: bullseye, bookworm" in done.stderr
