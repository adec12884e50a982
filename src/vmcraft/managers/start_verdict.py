"""Whether a start did what it should: a job that is `done` proves nothing by itself. Arithmetic over what was read.

A simple service whose program is missing, one that exits at once, one whose condition is not met: all are `done`.
"""

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
from vmcraft.model.printable import quoted
from vmcraft.model.services import ActiveState, JobResult, LoadState, ServiceRun
from vmcraft.model.units import Condition, ServiceShown, UnitShown

_ENDED = {1: "exit status", 2: "signal", 3: "signal (dumped core)"}
_ERRORS = "org.freedesktop.systemd1."


def unmask(unit: str) -> str:
    """What to do about a mask."""
    return f"remove its symlink to /dev/null from the root: /etc/systemd/system/{unit}"


def refuse_unstartable(shown: UnitShown) -> None:
    """Refuse a unit that cannot be started, before it is tried."""
    match shown.load:
        case LoadState.MASKED:
            raise UnitMasked(f"{shown.id} is masked", remedy=unmask(shown.id))
        case LoadState.BAD_SETTING | LoadState.ERROR:
            raise BadSetting(
                f"{shown.id} cannot be used: {shown.load_error or shown.load}", remedy="mend its unit file"
            )
        case _:
            return


def translated(error: BusError, unit: str) -> Refused:
    """What an error reply to a start, stop or restart means for the unit that was asked for."""
    match error.name.removeprefix(_ERRORS):
        case "NoSuchUnit" if _names(error.said, unit):
            return NoSuchUnit(unit)
        case "NoSuchUnit":
            return DependencyFailed(f"{unit} needs a unit that does not exist: {quoted(error.said)}")
        case "UnitMasked" if _names(error.said, unit):
            return UnitMasked(f"{unit} is masked", remedy=unmask(unit))
        case "UnitMasked":
            return DependencyFailed(f"{unit} needs a unit that is masked: {quoted(error.said)}")
        case "BadUnitSetting":
            return BadSetting(f"{unit} cannot be used: {quoted(error.said)}", remedy="mend its unit file")
        case "OnlyByDependency":
            return JobFailed(f"{unit} refuses to be started or stopped by hand", remedy="start a unit that requires it")
        case "TransactionOrderIsCyclic":
            return JobFailed(
                f"{unit} cannot be started: {quoted(error.said)}", remedy="mend the ordering (After=, Before=)"
            )
        case "JobTypeNotApplicable":
            return JobFailed(f"{unit}: {quoted(error.said)}")
        case _:
            return error


def _names(said: str, unit: str) -> bool:
    """Whether systemd's sentence is about this unit, and not about one whose name contains it."""
    return unit in said.split() or f"{unit}." in said.split()


def judge_start(run: ServiceRun, shown: UnitShown, service: ServiceShown | None) -> JobFailed | None:
    """What went wrong with a start; None when the unit is now as a start should leave it.

    Returns:
        ConditionNotMet when a condition, an assert or ExecCondition= said no, DependencyFailed when a unit that it
        requires failed first, JobFailed for everything else.
    """
    unmet = _unmet(run, shown, service)
    if unmet:
        return ConditionNotMet(f"{run.unit} was skipped: {unmet}", remedy="the unit is made to be skipped here")
    if run.job_result is JobResult.DEPENDENCY:
        cause = run.dependency or "a unit that it requires"
        return DependencyFailed(f"{run.unit} was not started since {cause} failed", remedy=f"look at {cause}")
    if run.job_result is not JobResult.DONE:
        return JobFailed(f"{run.unit} did not start: the job ended as {run.job_result}{_how(run)}")
    if run.active in (ActiveState.ACTIVE, ActiveState.RELOADING, ActiveState.REFRESHING):
        return None
    if run.active is ActiveState.INACTIVE and service is not None and _ran_once(service):
        return None
    return JobFailed(f"{run.unit} {_state(run, service)}{_how(run)}")


def judge_stop(run: ServiceRun) -> JobFailed | None:
    """What went wrong with a stop; None when nothing of the unit runs."""
    if run.job_result is not JobResult.DONE or run.active not in (ActiveState.INACTIVE, ActiveState.FAILED):
        return JobFailed(f"{run.unit} did not stop: the job ended as {run.job_result}, the unit is {run.active}")
    return None


def _unmet(run: ServiceRun, shown: UnitShown, service: ServiceShown | None) -> str:
    if run.job_result is JobResult.ASSERT or (shown.assert_usec and not shown.assert_result):
        return f"{_false(shown.asserts) or 'an assert'} is not met"
    if run.job_result is JobResult.SKIPPED or (service is not None and service.result == "exec-condition"):
        return "its ExecCondition= is not met"
    if shown.active is not ActiveState.ACTIVE and shown.condition_usec and not shown.condition_result:
        return f"{_false(shown.conditions) or 'a condition'} is not met"
    return ""


def _false(conditions: tuple[Condition, ...]) -> str:
    """The conditions that decided: the first plain one that is false, else all the triggers."""
    plain = [str(condition) for condition in conditions if condition.state < 0 and not condition.trigger]
    triggers = [str(condition) for condition in conditions if condition.trigger]
    return plain[0] if plain else " ".join(triggers)


def _ran_once(service: ServiceShown) -> bool:
    return service.type == "oneshot" and service.result == "success" and service.exec_main_exit_usec > 0


def _state(run: ServiceRun, service: ServiceShown | None) -> str:
    if run.sub == "auto-restart":
        return f"is restarted again and again ({service.restarts if service else 'some'} times so far)"
    if run.active is ActiveState.INACTIVE:
        return "ended at once"
    return f"is {run.active} ({run.sub}) right after its start"


def _how(run: ServiceRun) -> str:
    if run.result in (None, "", "success") and not run.exec_main_code:
        return ""
    ended = _ENDED.get(run.exec_main_code or 0)
    return f" (result {run.result}" + (f", {ended} {run.exec_main_status}" if ended else "") + ")"
