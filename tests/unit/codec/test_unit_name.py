"""Unit names: what no unit can have is refused, whatever a caller or a guest makes up; paths are systemd's own."""

import re
import string

import pytest
from dbus_fast.validators import is_object_path_valid
from hypothesis import example, given
from hypothesis import strategies as st

from vmcraft.codec import unit_name
from vmcraft.errors import InvalidName

pytestmark = pytest.mark.unit

CHARACTERS = string.ascii_letters + string.digits + ":_.\\-"
PARTS = st.text(CHARACTERS, min_size=1, max_size=40)
INSTANCES = st.text(CHARACTERS + "@", max_size=40)
NAMES = st.one_of(PARTS, st.tuples(PARTS, INSTANCES).map("@".join))
FULL = st.tuples(NAMES, st.sampled_from(sorted(unit_name.UNIT_TYPES))).map(".".join)


# --- complete


@pytest.mark.parametrize(
    ("name", "suffix", "full"),
    [
        ("sshd", ".service", "sshd.service"),
        ("sshd.service", ".service", "sshd.service"),
        ("x.timer", ".service", "x.timer"),
        ("x", ".mount", "x.mount"),
        ("a.b", ".service", "a.b.service"),
        ("dbus-org.freedesktop.network1", ".service", "dbus-org.freedesktop.network1.service"),
        ("service", ".service", "service.service"),
        ("x.Service", ".service", "x.Service.service"),
        ("x.servicex", ".service", "x.servicex.service"),
        ("getty@tty1", ".service", "getty@tty1.service"),
        ("x@", ".service", "x@.service"),
        ("x@a@b", ".service", "x@a@b.service"),
        (r"dev-disk-by\x2dlabel", ".swap", r"dev-disk-by\x2dlabel.swap"),
        ("-", ".mount", "-.mount"),
        ("a:b", ".service", "a:b.service"),
    ],
)
def test_name_is_completed_with_the_calls_own_suffix_alone_where_none_is_named(
    name: str, suffix: str, full: str
) -> None:
    assert unit_name.complete(name, suffix) == full
    assert unit_name.complete(full, suffix) == full


HOSTILE = [
    "",
    ".",
    "..",
    ".service",
    "@",
    "@.service",
    "@x.service",
    "../x",
    "/etc/passwd",
    "a/b",
    "a/b.service",
    "..\\..",
    "a..b",
    "x\n",
    "x.service\n",
    "x\r",
    "x\0",
    "x\0.service",
    "\nx",
    "a b",
    "a\tb",
    "é",
    "\uff53shd",
    "x٣",
    "\u202eecivres",
    "x\udcff",
    "-\x1b[31m",
    "$(reboot)",
    "*",
    "x?",
    "x;y",
    "x%n",
    '"x"',
    "x" * 256,
    "x@" + "y" * 300,
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_name_that_no_unit_can_have_is_refused_in_one_printable_line(name: str) -> None:
    for refuse in (unit_name.complete, unit_name.concrete):
        with pytest.raises(InvalidName) as caught:
            refuse(name, ".service")
        assert caught.value.text.replace("\t", " ").isprintable()
        assert len(caught.value.text) < 300


@pytest.mark.parametrize("name", [None, 3, True, b"sshd", ["sshd"], object()], ids=lambda name: type(name).__name__)
def test_what_is_no_string_is_a_type_error(name: object) -> None:
    with pytest.raises(TypeError, match="unit name"):
        unit_name.complete(name, ".service")  # type: ignore[arg-type]


def test_length_is_counted_with_the_suffix() -> None:
    longest = "x" * (unit_name.NAME_LIMIT - len(".service"))
    assert unit_name.NAME_LIMIT == 255
    assert len(unit_name.complete(longest, ".service")) == 255
    with pytest.raises(InvalidName, match="255"):
        unit_name.complete(longest + "x", ".service")


@given(st.text(max_size=300))
@example("a" * 100_000)
@example("a." * 50_000)
@example("a@" * 50_000)
def test_any_text_is_refused_or_becomes_a_name_that_systemd_takes(name: str) -> None:
    try:
        full = unit_name.complete(name, ".service")
    except InvalidName:
        return
    assert unit_name.is_valid(full)
    assert full.startswith(name)
    assert full.isascii()
    assert not set(full) & set("/\0\r\n ")
    assert unit_name.complete(full, ".timer") == full


# --- is_valid


@pytest.mark.parametrize("name", ["x.service", "x@.service", "x@y.socket", "-.mount", "a@b@c.timer", "a..b.service"])
def test_names_that_a_guest_may_report_are_valid(name: str) -> None:
    assert unit_name.is_valid(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "x", "x.", ".service", "x.bogus", "x.Service", "x.service ", "x.service\n", "a/b.service"),
        *("@x.service", "é.service", "x" * 248 + ".service"),
    ],
    ids=ascii,
)
def test_names_that_systemd_would_refuse_are_not_valid(name: str) -> None:
    assert not unit_name.is_valid(name)


# --- templates and instances; unit_name_is_valid() and unit_name_template() of systemd decide by the first "@" and the
# last "."


@pytest.mark.parametrize(
    ("unit", "template"),
    [
        ("getty@tty1.service", "getty@.service"),
        ("user@1000.service", "user@.service"),
        ("x@a@b.service", "x@.service"),
        ("x@@.service", "x@.service"),
        ("x@a.b.service", "x@.service"),
        ("x@.y.service", "x@.service"),  # LoadUnit of systemd 252 takes it: the instance is ".y"
        ("x@a@.service", "x@.service"),
        ("a.b@c.timer", "a.b@.timer"),
    ],
)
def test_instance_has_a_template_and_can_run(unit: str, template: str) -> None:
    assert unit_name.template_of(unit) == template
    assert not unit_name.is_template(unit)
    assert unit_name.concrete(unit) == unit
    assert unit_name.is_template(template)


@pytest.mark.parametrize(
    ("unit", "is_one"),
    [("x.service", False), ("-.mount", False), ("a.b.c.timer", False), ("x@.service", True), ("a.b@.socket", True)],
)
def test_other_names_have_no_template(unit: str, is_one: bool) -> None:
    assert unit_name.template_of(unit) is None
    assert unit_name.is_template(unit) is is_one


@pytest.mark.parametrize("name", ["getty@", "getty@.service", "a.b@"])
def test_template_is_refused_where_something_must_run_and_the_remedy_shows_an_instance(name: str) -> None:
    with pytest.raises(InvalidName, match="template") as caught:
        unit_name.concrete(name)
    assert f"{name.partition('@')[0]}@INSTANCE.service" in caught.value.remedy


@given(FULL)
def test_template_and_instance_follow_systemds_rule(unit: str) -> None:
    head, _, suffix = unit.rpartition(".")
    prefix, at, instance = head.partition("@")
    assert unit_name.kind(unit) == suffix
    assert unit_name.is_template(unit) == (at == "@" and not instance)
    assert unit_name.template_of(unit) == (f"{prefix}@.{suffix}" if instance else None)


# --- object paths


@pytest.mark.parametrize(
    ("unit", "label"),
    [
        ("a-b.service", "a_2db_2eservice"),
        ("1x.service", "_31x_2eservice"),
        ("_.service", "_5f_2eservice"),
        ("-.mount", "_2d_2emount"),
        ("getty@.y.service", "getty_40_2ey_2eservice"),
        (r"a\x2db.swap", "a_5cx2db_2eswap"),
        ("12.service", "_312_2eservice"),
    ],
)
def test_object_path_is_what_systemd_answered(unit: str, label: str) -> None:
    assert unit_name.object_path(unit) == f"/org/freedesktop/systemd1/unit/{label}"


@given(st.text(min_size=1, max_size=60).filter(lambda text: text.isprintable()) | FULL)
def test_object_path_of_any_name_is_a_valid_path_that_leads_back_to_it(unit: str) -> None:
    path = unit_name.object_path(unit)
    assert is_object_path_valid(path)
    label = path.removeprefix("/org/freedesktop/systemd1/unit/")
    assert "/" not in label
    assert not label[0].isdigit()
    decoded = re.sub(rb"_([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), label.encode())
    assert decoded == unit.encode()
