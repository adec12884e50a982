"""Start, stop, restart: what a unit is really like afterwards, whatever its job said. On every release."""

import anyio
import pytest

from vmcraft.errors import (
    BadSetting,
    ConditionNotMet,
    DependencyFailed,
    InvalidName,
    JobFailed,
    NoSuchUnit,
    UnitMasked,
)
from vmcraft.guest.programs import run_in_guest
from vmcraft.model.services import ActiveState, JobResult, ServiceRun
from vmcraft.transaction import Transaction

pytestmark = pytest.mark.guest


def run_of(error: JobFailed) -> ServiceRun:
    """What the failed job left."""
    assert isinstance(error.result, ServiceRun)
    return error.result


async def test_start_of_a_simple_service_is_read_back_as_running(guest: Transaction) -> None:
    run = await guest.services.service_start("st-static")
    assert (run.job_result, run.active, run.sub) == (JobResult.DONE, ActiveState.ACTIVE, "running")
    status = await guest.services.service_status("st-static")
    assert status.active is ActiveState.ACTIVE
    assert status.main_pid


async def test_start_of_a_running_service_is_done(guest: Transaction) -> None:
    await guest.services.service_start("st-static")
    first = (await guest.services.service_status("st-static")).main_pid
    await guest.services.service_start("st-static")
    assert (await guest.services.service_status("st-static")).main_pid == first


async def test_oneshot_that_succeeds_keeps_its_result_although_systemd_unloads_it(guest: Transaction) -> None:
    run = await guest.services.service_start("st-oneshot")
    assert (run.active, run.result, run.exec_main_code, run.exec_main_status) == (ActiveState.INACTIVE, "success", 1, 0)
    assert run.log == ()
    remain = await guest.services.service_start("st-remain")
    assert (remain.active, remain.sub) == (ActiveState.ACTIVE, "exited")


async def test_oneshot_that_fails_says_how_with_its_last_words(guest: Transaction) -> None:
    with pytest.raises(JobFailed) as caught:
        await guest.services.service_start("st-fail")
    run = run_of(caught.value)
    assert (run.job_result, run.result, run.exec_main_code, run.exec_main_status) == (
        JobResult.FAILED,
        "exit-code",
        1,
        1,
    )
    assert "its last words" in [line.message for line in run.log]


@pytest.mark.parametrize(("unit", "status"), [("st-exit3", 3), ("st-noexec", 203), ("st-exit0", 0)])
async def test_job_that_is_done_proves_nothing_for_a_simple_service_that_dies_at_once(
    guest: Transaction, unit: str, status: int
) -> None:
    with pytest.raises(JobFailed) as caught:
        await guest.services.service_start(unit)
    run = run_of(caught.value)
    assert run.job_result is JobResult.DONE
    assert run.active in (ActiveState.FAILED, ActiveState.INACTIVE)
    assert (run.exec_main_code, run.exec_main_status) == (1, status)


async def test_user_that_does_not_exist_and_a_crash_are_told_apart(guest: Transaction) -> None:
    with pytest.raises(JobFailed) as user:
        await guest.services.service_start("st-nouser")
    assert run_of(user.value).exec_main_status == 217
    with pytest.raises(JobFailed) as crash:
        await guest.services.service_start("st-segv")
    assert (run_of(crash.value).result, run_of(crash.value).exec_main_code, run_of(crash.value).exec_main_status) in (
        ("signal", 2, 11),
        ("core-dump", 3, 11),
    )


async def test_service_that_never_gets_ready_fails_at_its_own_limit(guest: Transaction) -> None:
    with pytest.raises(JobFailed) as caught:
        await guest.services.service_start("st-timeout")
    assert run_of(caught.value).result == "timeout"


@pytest.mark.parametrize("unit", ["st-loop", "st-loop-forever"])
async def test_service_that_is_restarted_again_and_again_is_not_started(guest: Transaction, unit: str) -> None:
    with pytest.raises(JobFailed) as caught:
        await guest.services.service_start(unit)
    assert run_of(caught.value).job_result is JobResult.DONE
    assert run_of(caught.value).active is not ActiveState.ACTIVE
    assert "7" in caught.value.text


async def test_unmet_condition_assert_and_exec_condition_are_named(guest: Transaction) -> None:
    with pytest.raises(ConditionNotMet, match="ConditionPathExists=/nonexistent") as condition:
        await guest.services.service_start("st-cond")
    assert run_of(condition.value).job_result is JobResult.DONE
    with pytest.raises(ConditionNotMet, match="AssertPathExists=/nonexistent"):
        await guest.services.service_start("st-assert")
    with pytest.raises(ConditionNotMet, match="ExecCondition="):
        await guest.services.service_start("st-execcond")


async def test_failed_dependency_names_the_unit_at_the_root_three_levels_down(guest: Transaction) -> None:
    with pytest.raises(DependencyFailed, match=r"st-mount-root\.service") as caught:
        await guest.services.service_start("st-app")
    assert run_of(caught.value).dependency == "st-mount-root.service"
    assert run_of(caught.value).job_result is JobResult.DEPENDENCY


async def test_dependency_that_does_not_exist_is_named_and_is_not_the_unit_itself(guest: Transaction) -> None:
    with pytest.raises(DependencyFailed, match=r"st-nothere\.service"):
        await guest.services.service_start("st-depmissing")


async def test_units_that_cannot_be_started_say_why(guest: Transaction) -> None:
    with pytest.raises(UnitMasked):
        await guest.services.service_start("st-masked")
    with pytest.raises(BadSetting):
        await guest.services.service_start("st-bad")
    with pytest.raises(JobFailed, match="by hand"):
        await guest.services.service_start("st-refuse")
    with pytest.raises(JobFailed, match="cyclic"):
        await guest.services.service_start("st-cycle-a")
    for call in (guest.services.service_start, guest.services.service_stop, guest.services.service_restart):
        with pytest.raises(NoSuchUnit):
            await call("st-nothere")


async def test_template_needs_an_instance(guest: Transaction) -> None:
    with pytest.raises(InvalidName, match="template"):
        await guest.services.service_start("st-tmpl@")
    run = await guest.services.service_start("st-tmpl@x")
    assert run.unit == "st-tmpl@x.service"


async def test_held_back_unit_is_not_started_and_says_so(guest: Transaction) -> None:
    with pytest.raises(ConditionNotMet, match="held back") as caught:
        await guest.services.service_start("systemd-networkd-wait-online")
    assert run_of(caught.value).held_back


async def test_other_unit_types_are_started_by_their_full_name(guest: Transaction) -> None:
    assert (await guest.services.service_start("st-target.target")).active is ActiveState.ACTIVE
    timer = await guest.services.service_start("st-timer.timer")
    assert (timer.active, timer.sub, timer.exec_main_code) == (ActiveState.ACTIVE, "waiting", None)


async def test_restart_gives_a_new_process_and_stop_ends_it(guest: Transaction) -> None:
    before = (await guest.services.service_status("cron")).main_pid
    await guest.services.service_restart("cron")
    after = (await guest.services.service_status("cron")).main_pid
    assert before != after
    run = await guest.services.service_stop("cron")
    assert run.active is ActiveState.INACTIVE
    assert (await guest.services.service_status("cron")).main_pid is None


async def test_stop_of_a_service_that_ignores_it_ends_with_a_kill_and_says_so(guest: Transaction) -> None:
    await guest.services.service_start("st-slowstop")
    run = await guest.services.service_stop("st-slowstop")
    assert (run.result, run.exec_main_code, run.exec_main_status) == ("timeout", 2, 9)


async def test_running_service_that_was_masked_can_be_stopped(guest: Transaction) -> None:
    await guest.services.services_mask(["cron"])
    run = await guest.services.service_stop("cron")
    assert run.active is ActiveState.INACTIVE


async def test_nothing_of_starting_and_stopping_is_left_to_commit(guest: Transaction) -> None:
    await guest.services.service_start("st-static")
    await guest.services.service_stop("cron")
    await guest.services.daemon_reload()
    assert await guest.diff() == ()


async def test_calls_that_systemd_merges_into_one_job_are_all_answered(guest: Transaction) -> None:
    answers: list[ServiceRun] = []

    async def restart() -> None:
        answers.append(await guest.services.service_restart("cron"))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(restart)
    assert [run.active for run in answers] == [ActiveState.ACTIVE] * 6


async def test_one_callers_cancellation_does_not_cancel_the_job_of_another(guest: Transaction) -> None:
    answers: list[str] = []

    async def start() -> None:
        try:
            await guest.services.service_start("st-timeout")
        except JobFailed as error:
            answers.append(run_of(error).result or "")

    async with anyio.create_task_group() as group:
        group.start_soon(start)
        with anyio.move_on_after(0.3):
            await guest.services.service_start("st-timeout")
    assert answers == ["timeout"]


async def test_device_that_is_not_there_is_named_as_the_cause(guest: Transaction) -> None:
    text = "[Unit]\nBindsTo=dev-nothing.device\nAfter=dev-nothing.device\n[Service]\nExecStart=/bin/sleep 9\n"
    script = (
        f"printf '{text}' > /run/systemd/system/st-agent.service; mkdir -p /run/systemd/system/dev-nothing.device.d;"
    )
    script += "printf '[Unit]\\nJobRunningTimeoutSec=1\\n' > /run/systemd/system/dev-nothing.device.d/x.conf"
    await run_in_guest(guest.guest, ["/bin/sh", "-c", script])
    await guest.services.daemon_reload()
    with pytest.raises(DependencyFailed, match=r"dev-nothing\.device"):
        await guest.services.service_start("st-agent")
