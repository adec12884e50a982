"""Whether a start did what it should: each row is what systemd 247, 252 and 257 were seen to show of such a unit."""

import dataclasses
from dataclasses import dataclass

import pytest

from vmcraft.errors import (
    BadSetting,
    BusError,
    ConditionNotMet,
    DependencyFailed,
    JobFailed,
    NoSuchUnit,
    Refused,
    UnitMasked,
)
from vmcraft.managers.start_verdict import judge_start, judge_stop, refuse_unstartable, translated
from vmcraft.model.services import ActiveState, JobResult, LoadState, ServiceRun
from vmcraft.model.units import Condition, ServiceShown, UnitShown

pytestmark = pytest.mark.unit

UNIT = "x.service"
NOW = 1_700_000_000_000_000
UNMET = Condition(name="ConditionPathExists", trigger=False, negate=False, parameter="/nonexistent", state=-1)
MET = dataclasses.replace(UNMET, parameter="/", state=1)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One row: what was started, and what is read of it afterwards.

    Attributes:
        what: The unit, in words.
        job: JobRemoved's word.
        active: Active and sub state.
        result: Service.Result, ExecMainCode, ExecMainStatus.
        verdict: The error, None for a start that did what it should.
        text: What its sentence names.
    """

    what: str
    job: str = "done"
    active: str
    result: str
    verdict: type[JobFailed] | None
    text: str = ""
    type: str = "simple"
    restarts: int = 0
    condition: bool = True
    asserted: bool = True
    dependency: str | None = None


ROWS = (
    Seen(what="simple, runs", active="active/running", result="success 0/0", verdict=None),
    Seen(what="oneshot ok", type="oneshot", active="inactive/dead", result="success 1/0", verdict=None),
    Seen(what="oneshot RemainAfterExit", type="oneshot", active="active/exited", result="success 1/0", verdict=None),
    Seen(
        what="oneshot exit 1",
        type="oneshot",
        job="failed",
        active="failed/failed",
        result="exit-code 1/1",
        verdict=JobFailed,
        text="exit status 1",
    ),
    Seen(
        what="simple, exits 3 at once",
        active="failed/failed",
        result="exit-code 1/3",
        verdict=JobFailed,
        text="exit status 3",
    ),
    Seen(
        what="simple, binary missing",
        active="failed/failed",
        result="exit-code 1/203",
        verdict=JobFailed,
        text="exit status 203",
    ),
    Seen(
        what="simple, exits 0 at once", active="inactive/dead", result="success 1/0", verdict=JobFailed, text="at once"
    ),
    Seen(
        what="exec, no such user",
        type="exec",
        job="failed",
        active="failed/failed",
        result="exit-code 1/217",
        verdict=JobFailed,
        text="exit status 217",
    ),
    Seen(
        what="killed by SEGV",
        type="oneshot",
        job="failed",
        active="failed/failed",
        result="signal 2/11",
        verdict=JobFailed,
        text="signal 11",
    ),
    Seen(
        what="dumped core",
        type="oneshot",
        job="failed",
        active="failed/failed",
        result="core-dump 3/11",
        verdict=JobFailed,
        text="signal (dumped core) 11",
    ),
    Seen(
        what="start timeout",
        type="notify",
        job="failed",
        active="failed/failed",
        result="timeout 2/15",
        verdict=JobFailed,
        text="timeout",
    ),
    Seen(
        what="ConditionPathExists false",
        active="inactive/dead",
        result="success 0/0",
        condition=False,
        verdict=ConditionNotMet,
        text="ConditionPathExists=/nonexistent",
    ),
    Seen(
        what="oneshot, ConditionPathExists false",
        type="oneshot",
        active="inactive/dead",
        result="success 0/0",
        condition=False,
        verdict=ConditionNotMet,
        text="ConditionPathExists=/nonexistent",
    ),
    Seen(
        what="Assert false",
        job="assert",
        active="inactive/dead",
        result="success 0/0",
        asserted=False,
        verdict=ConditionNotMet,
        text="AssertPathExists=/nonexistent",
    ),
    Seen(
        what="ExecCondition false, 247",
        type="oneshot",
        job="skipped",
        active="inactive/dead",
        result="exec-condition 0/0",
        verdict=ConditionNotMet,
        text="ExecCondition=",
    ),
    Seen(
        what="ExecCondition false, 252 and later",
        type="oneshot",
        active="inactive/dead",
        result="exec-condition 0/0",
        verdict=ConditionNotMet,
        text="ExecCondition=",
    ),
    Seen(
        what="Requires= of a failing unit",
        job="dependency",
        active="inactive/dead",
        result="success 0/0",
        dependency="disk.service",
        verdict=DependencyFailed,
        text="disk.service",
    ),
    Seen(
        what="Requires= of a unit that is not found again",
        job="dependency",
        active="inactive/dead",
        result="success 0/0",
        verdict=DependencyFailed,
        text="a unit that it requires",
    ),
    Seen(
        what="Restart=always, waiting",
        active="activating/auto-restart",
        result="exit-code 1/7",
        restarts=2,
        verdict=JobFailed,
        text="2 times",
    ),
    Seen(
        what="Restart=always, limit reached",
        active="failed/failed",
        result="exit-code 1/7",
        restarts=3,
        verdict=JobFailed,
        text="exit status 7",
    ),
    Seen(what="job cancelled", job="canceled", active="activating/start", result="success 0/0", verdict=JobFailed),
    Seen(what="the job's own timer", job="timeout", active="activating/start", result="success 0/0", verdict=JobFailed),
    Seen(
        what="a job result of a newer systemd",
        job="from-the-future",
        active="inactive/dead",
        result="success 0/0",
        verdict=JobFailed,
        text="from-the-future",
    ),
    Seen(what="reloads", active="reloading/reload", result="success 0/0", verdict=None),
    Seen(what="refreshes", active="refreshing/refresh", result="success 0/0", verdict=None),
    Seen(
        what="an active state of a newer systemd",
        active="from-the-future/dead",
        result="success 0/0",
        verdict=JobFailed,
        text="from-the-future",
    ),
    Seen(
        what="oneshot that was unloaded, all its times lost",
        type="oneshot",
        active="inactive/dead",
        result="success 0/0",
        verdict=JobFailed,
    ),
)


def run_of(row: Seen) -> ServiceRun:
    """The row as the job left it."""
    active, _, sub = row.active.partition("/")
    result, _, ended = row.result.partition(" ")
    code, _, status = ended.partition("/")
    return ServiceRun(
        unit=UNIT,
        job_result=JobResult(row.job),
        active=ActiveState(active),
        sub=sub,
        result=result,
        exec_main_code=int(code),
        exec_main_status=int(status),
        dependency=row.dependency,
    )


def unit_of(row: Seen, *, load: LoadState = LoadState.LOADED, load_error: str = "") -> UnitShown:
    """The row as org.freedesktop.systemd1.Unit shows it."""
    active, _, sub = row.active.partition("/")
    return UnitShown(
        id=UNIT,
        names=(UNIT,),
        description="",
        load=load,
        load_error=load_error,
        active=ActiveState(active),
        sub=sub,
        unit_file_state="static",
        unit_file_preset="",
        fragment_path="",
        source_path="",
        drop_ins=(),
        triggered_by=(),
        requires=(),
        need_daemon_reload=False,
        transient=False,
        active_enter_usec=0,
        inactive_exit_usec=0,
        condition_result=row.condition,
        condition_usec=NOW,
        assert_result=row.asserted,
        assert_usec=NOW if row.condition else 0,
        conditions=(MET,) if row.condition else (MET, UNMET),
        asserts=() if row.asserted else (dataclasses.replace(UNMET, name="AssertPathExists"),),
    )


def service_of(row: Seen) -> ServiceShown:
    """The row as org.freedesktop.systemd1.Service shows it."""
    run = run_of(row)
    assert run.result is not None
    assert run.exec_main_code is not None
    assert run.exec_main_status is not None
    return ServiceShown(
        type=row.type,
        result=run.result,
        main_pid=0,
        exec_main_code=run.exec_main_code,
        exec_main_status=run.exec_main_status,
        exec_main_exit_usec=NOW if run.exec_main_code else 0,
        restarts=row.restarts,
        memory_bytes=None,
        cpu_nsec=None,
        tasks=None,
        remain_after_exit=False,
    )


RUNNING = ROWS[0]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_verdict_on_a_start(row: Seen) -> None:
    verdict = judge_start(run_of(row), unit_of(row), service_of(row))
    assert type(verdict) is (row.verdict or type(None))
    if verdict is not None:
        assert verdict.text.startswith(UNIT)
        assert row.text in verdict.text


def test_condition_that_no_longer_holds_does_not_matter_to_a_unit_that_runs_already() -> None:
    shown = dataclasses.replace(unit_of(RUNNING), condition_result=False, conditions=(UNMET,))
    assert judge_start(run_of(RUNNING), shown, service_of(RUNNING)) is None


def test_condition_that_was_never_checked_is_not_the_reason() -> None:
    row = dataclasses.replace(RUNNING, job="failed", active="inactive/dead", condition=False)
    shown = dataclasses.replace(unit_of(row), condition_usec=0)
    assert type(judge_start(run_of(row), shown, service_of(row))) is JobFailed


def test_of_alternative_conditions_all_are_named() -> None:
    either = [dataclasses.replace(UNMET, trigger=True, parameter=path) for path in ("/a", "/b")]
    row = dataclasses.replace(RUNNING, active="inactive/dead", condition=False)
    shown = dataclasses.replace(unit_of(row), conditions=(*either, MET))
    verdict = judge_start(run_of(row), shown, service_of(row))
    assert isinstance(verdict, ConditionNotMet)
    assert "ConditionPathExists=|/a ConditionPathExists=|/b" in verdict.text


@pytest.mark.parametrize(
    ("active", "job", "verdict"),
    [
        ("active/active", "done", None),
        ("active/plugged", "done", None),
        ("inactive/dead", "done", JobFailed),
        ("failed/failed", "failed", JobFailed),
    ],
)
def test_unit_that_is_no_service_is_judged_by_its_state(active: str, job: str, verdict: type[JobFailed] | None) -> None:
    row = dataclasses.replace(RUNNING, active=active, job=job)
    run = dataclasses.replace(run_of(row), result=None, exec_main_code=None, exec_main_status=None)
    assert type(judge_start(run, unit_of(row), None)) is (verdict or type(None))


@pytest.mark.parametrize(
    ("job", "active", "stopped"),
    [
        ("done", "inactive/dead", True),
        ("done", "failed/failed", True),  # it ignored SIGTERM and was killed: nothing of it runs
        ("done", "active/running", False),
        ("done", "activating/auto-restart", False),
        ("done", "deactivating/stop-sigterm", False),
        ("canceled", "deactivating/stop-sigterm", False),
        ("failed", "inactive/dead", False),
        ("timeout", "deactivating/stop-sigkill", False),
    ],
)
def test_verdict_on_a_stop(job: str, active: str, stopped: bool) -> None:
    verdict = judge_stop(run_of(dataclasses.replace(RUNNING, job=job, active=active)))
    assert (verdict is None) is stopped
    if verdict is not None:
        assert UNIT in verdict.text
        assert job in verdict.text


@pytest.mark.parametrize(
    ("name", "said", "error", "text"),
    [
        ("NoSuchUnit", "Unit x.service not found.", NoSuchUnit, "x.service is not known"),
        ("NoSuchUnit", "Unit other.service not found.", DependencyFailed, "other.service"),
        ("NoSuchUnit", "Unit ax.service not found.", DependencyFailed, "ax.service"),
        ("UnitMasked", "Unit x.service is masked.", UnitMasked, "x.service is masked"),
        ("UnitMasked", "Unit other.service is masked.", DependencyFailed, "other.service"),
        ("BadUnitSetting", "Unit x.service has a bad unit file setting.", BadSetting, "bad unit file setting"),
        ("OnlyByDependency", "Operation refused.", JobFailed, "by hand"),
        ("TransactionOrderIsCyclic", "Transaction order is cyclic.", JobFailed, "cyclic"),
        ("JobTypeNotApplicable", "Job type reload is not applicable.", JobFailed, "not applicable"),
    ],
)
def test_error_reply_to_a_start_says_what_it_means_for_the_unit(
    name: str, said: str, error: type[Refused], text: str
) -> None:
    reply = BusError(f"org.freedesktop.systemd1.{name}", said, member="Manager.StartUnit")
    meaning = translated(reply, UNIT)
    assert type(meaning) is error
    assert text in meaning.text


@pytest.mark.parametrize("name", ["org.freedesktop.DBus.Error.InvalidArgs", "org.freedesktop.systemd1.New", "", "x"])
def test_error_reply_without_a_meaning_of_its_own_stays_what_it_is(name: str) -> None:
    reply = BusError(name, "", member="Manager.StartUnit")
    assert translated(reply, UNIT) is reply


@pytest.mark.parametrize(
    ("load", "error"),
    [(LoadState.MASKED, UnitMasked), (LoadState.BAD_SETTING, BadSetting), (LoadState.ERROR, BadSetting)],
)
def test_unit_that_cannot_be_started_is_refused_before_it_is_tried(load: LoadState, error: type[Refused]) -> None:
    with pytest.raises(error) as caught:
        refuse_unstartable(unit_of(RUNNING, load=load, load_error="Unit x.service has a bad line"))
    assert caught.value.remedy
    assert UNIT in caught.value.text


@pytest.mark.parametrize("load", [LoadState.LOADED, LoadState.MERGED, LoadState("from-the-future")])
def test_unit_that_may_be_started_is_not_refused(load: LoadState) -> None:
    shown = unit_of(RUNNING, load=load)
    refuse_unstartable(shown)
    assert shown.exists
