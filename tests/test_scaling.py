"""Replicas come and go: how many are wanted, who is waited for, and where work goes meanwhile."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import stamina
from ray.exceptions import ActorDiedError, RayError
from test_attempts import Tasks, site, units

from actors.replica import SEQUENCES
from actors.spec import Autoscaling, ModelSpec
from cluster import deploy, fanout, readiness
from cluster.admission import Bundle, admission_of
from cluster.deploy import Deployed, Ready
from cluster.fanout import Site, run_units
from cluster.machines import Machines
from cluster.readiness import Patience, first_ready
from cluster.routing import Balance, Route
from cluster.scaling import autoscaling_config, replicas_wanted
from cluster.sharing import USE_S, OwnUse, Uses, application_name, code_digest
from cluster.unit_tables import UnitTables
from jobs.models import policy_spec
from jobs.settings import PolicySettings
from search.errors import ClusterError

pytestmark = pytest.mark.unit

SPEC = ModelSpec("p", "model", "fake", "float64")


def context(under_way: dict[str, float] | None, target: float = 64.0) -> Any:
    metrics = {SEQUENCES: under_way} if under_way is not None else {}
    config = SimpleNamespace(target_ongoing_requests=target)
    return SimpleNamespace(aggregated_metrics=metrics, config=config, target_num_replicas=3)


@pytest.mark.parametrize(
    ("under_way", "wanted"),
    [({"a": 150.0}, 150 / 64), ({"a": 64.0, "b": 64.0}, 2.0), ({"a": 0.0}, 0.0)],
)
def test_replicas_follow_the_sequences_under_way(
    under_way: dict[str, float], wanted: float
) -> None:
    assert replicas_wanted(context(under_way)) == (wanted, {})


def test_before_replicas_say_anything_their_number_stays() -> None:
    assert replicas_wanted(context(None)) == (3, {})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # importing ray.serve
def test_serve_is_told_the_limits_and_the_rule() -> None:
    told = autoscaling_config(Autoscaling(0, 4, 32.0, 5.0, 60.0))
    limits = (told.min_replicas, told.initial_replicas, told.max_replicas)
    assert limits == (0, 1, 4)
    assert told.target_ongoing_requests == 32
    decide = told.policy.get_policy()
    assert decide(context({"a": 64.0}, target=32.0)) == (2.0, {})


def test_a_recipe_says_how_many_replicas_there_are_at_most() -> None:
    scaling = {"min": 0, "max": 8}
    spec = policy_spec(
        PolicySettings.model_validate(
            {"model": "fake", "engine": "fake", "max_batch": 16, "autoscaling": scaling}
        )
    )
    assert (spec.replicas, spec.most_replicas) == (1, 8)
    assert spec.autoscaling == Autoscaling(0, 8, 16, 10.0, 60.0)


def test_what_is_admitted_follows_the_ready_replicas() -> None:
    whole = admission_of(10_000, replicas=4, max_batch=64, solutions_per_unit=64)
    assert whole.of(1).batch == 64
    assert whole.of(1).of(3).batch == 192
    assert whole.of(1).of(4) == whole


def test_a_key_that_left_and_came_back_has_what_is_still_under_way() -> None:
    balance = Balance(("a", "b"), batch=128)
    assert balance.take(64) == ("a",)
    balance.follow(("b",), 64)
    assert balance.take(32) == ("b",)
    balance.follow(("a", "b"), 128)
    assert balance.take(1) == ("b",)
    balance.give_back(("a",), 64)
    assert balance.take(1) == ("a",)


def test_new_replicas_get_work_and_lost_ones_get_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """One replica holds one unit; when there are three, three units are under way."""
    started: list[tuple[str, int]] = []
    keys, under_way = [("a",)], 0

    async def outcome(
        bundle: Bundle, site: Site, route: Route, machines: Machines
    ) -> list[UnitTables]:
        nonlocal under_way
        under_way += 1
        started.append((route.policy[0], under_way))
        assert set(route.policy) <= set(site.policy_keys) == set(keys[-1])
        await asyncio.sleep(0)
        if len(started) == 4:
            keys.append(("b", "c", "d"))
        await asyncio.sleep(0)
        under_way -= 1
        return await Tasks({})(bundle, site, route, machines)

    async def all_units() -> int:
        admission = replace(admission_of(48, replicas=3, max_batch=4, solutions_per_unit=4), room=1)
        first, todo = replace(site(1), policy_keys=("a",)), units("abcdefghijkl")
        done = run_units(todo, first, admission.of(1), lambda: (keys[-1], ("",)))
        return len([each async for each in done])

    monkeypatch.setattr(fanout, "_remote_outcome", outcome)
    assert asyncio.run(all_units()) == 12
    assert {key for key, _ in started[:4]} == {"a"}
    assert {key for key, _ in started[4:]} == {"b", "c", "d"}
    assert max(count for _, count in started[:4]) == 2  # two may always be under way
    assert max(count for _, count in started[4:]) == 3


def test_ready_keys_are_those_of_now() -> None:
    policy = Deployed("policy", SimpleNamespace(parameters=1), ("0",))  # type: ignore[arg-type]
    ready = Ready(policy, None)
    assert ready.keys() == (("0",), ("",))
    policy.keys = ("0", "3")
    assert ready.keys() == (("0", "3"), ("",))


class Handle:
    """One of Serve's, to replicas at these addresses."""

    def __init__(self, *addresses: str) -> None:
        self._addresses, self.is_open = addresses, True

    def options(self, session_id: str) -> Any:
        async def remote() -> str:
            return self._addresses[int(session_id) % len(self._addresses)]

        return SimpleNamespace(address=SimpleNamespace(remote=remote))

    async def shutdown_async(self) -> None:
        self.is_open = False


def test_a_replica_that_came_is_asked_for_with_a_handle_that_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answers(key: str) -> bool:
        return key != "gone"

    async def ready(application: str) -> int:
        return 2

    handle = Handle("a", "b")
    serve = SimpleNamespace(get_app_handle=lambda name: handle)
    monkeypatch.setattr("ray.serve", serve, raising=False)
    monkeypatch.setattr(deploy, "answers", answers)
    monkeypatch.setattr(deploy, "ready_replicas", ready)
    facts = SimpleNamespace(parameters=1)
    policy = Deployed("policy", facts, ("a", "gone"))  # type: ignore[arg-type]
    asyncio.run(deploy._follow(policy))
    assert sorted(policy.keys) == ["a", "b"]
    assert not handle.is_open


class Leaving(Handle):
    """One whose replicas go: as many questions fail as there are errors, each with its own."""

    def __init__(self, facts: list[Exception], address: list[Exception]) -> None:
        super().__init__("a", "b")
        self._errors = address
        self.facts = SimpleNamespace(remote=lambda: self._answer(facts, "facts"))

    def options(self, session_id: str) -> Any:
        key = "ab"[int(session_id) % 2]
        return SimpleNamespace(
            address=SimpleNamespace(remote=lambda: self._answer(self._errors, key))
        )

    async def _answer(self, errors: list[Exception], answer: str) -> str:
        if errors:
            raise errors.pop(0)
        return answer


def started(
    monkeypatch: pytest.MonkeyPatch, handle: Handle
) -> tuple[Deployed | Exception | None, int]:
    """The model, or the error for the reader, and how often ready replicas were looked for."""
    from ray import serve

    looks = 0

    async def two_ready(*asked: Any) -> int:
        nonlocal looks
        looks += 1
        return 2

    monkeypatch.setattr(serve, "get_app_handle", lambda name: handle)
    monkeypatch.setattr(deploy, "_start_serve", lambda: None)
    monkeypatch.setattr(deploy, "first_ready", two_ready)
    starting = deploy._started("policy", "policy", SPEC, OwnUse("policy"), Patience("p", None))
    try:
        with stamina.set_testing(True, attempts=99, cap=True):
            return asyncio.run(starting), looks
    except ClusterError as error:
        return error, looks


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # importing ray.serve
def test_a_replica_that_goes_before_it_has_answered_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, looks = started(monkeypatch, Leaving([ActorDiedError()], [ActorDiedError()]))
    assert isinstance(model, Deployed)
    assert (model.facts, sorted(model.keys)) == ("facts", ["a", "b"])
    assert looks == 3  # facts fail, then an address, then nothing


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # importing ray.serve
def test_replicas_that_never_answer_are_an_error_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray.serve._private.common import DeploymentID
    from ray.serve.exceptions import DeploymentUnavailableError

    unavailable = DeploymentUnavailableError(DeploymentID("PolicyReplica", "policy"))
    for handle in (Leaving([unavailable] * 99, []), Leaving([], [unavailable] * 99)):
        error, looks = started(monkeypatch, handle)
        assert looks == deploy.QUESTIONS
        assert str(error).startswith("the policy 'model' did not start: Deployment(name=")
        assert str(error).endswith("is unavailable because it failed to deploy.")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # importing ray.serve
def test_an_application_that_cannot_be_deployed_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployed = 0

    def fail(*asked: Any) -> None:
        nonlocal deployed
        deployed += 1
        raise RayError("Serve has gone")

    monkeypatch.setattr(deploy, "_start_serve", lambda: None)
    monkeypatch.setattr(deploy, "_deploy", fail)
    monkeypatch.setattr(readiness, "_state", Serve(None).state)
    starting = deploy._started("policy", "policy", SPEC, OwnUse("policy"), Patience("p", None))
    with pytest.raises(ClusterError, match="the policy 'model' did not start: Serve has gone"):
        asyncio.run(asyncio.wait_for(starting, 60))
    assert deployed == 1


class Serve:
    """Serve's status as it goes on: states of the application, one a look; None if it is not."""

    def __init__(
        self, *states: dict[str, int] | None, message: str = "no machine has room"
    ) -> None:
        self._states, self._message, self.deployed = list(states), message, 0

    async def state(self, application: str) -> Any:
        counts = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        if counts is None:
            return None
        deployment = SimpleNamespace(replica_states=counts, message=self._message)
        return SimpleNamespace(deployments={"p": deployment})

    async def deploy(self) -> None:
        self.deployed += 1


class OneUse:
    """Deploys when the application is not there."""

    async def deploys(self, is_there: bool) -> bool:
        return not is_there


def ready(
    monkeypatch: pytest.MonkeyPatch, serve: Serve, wanted: int, timeout_s: float | None = None
) -> int:
    monkeypatch.setattr(readiness, "_state", serve.state)
    monkeypatch.setattr(readiness, "LOOK_INTERVAL_S", 0.0)
    waiting = first_ready("p", wanted, OneUse(), serve.deploy, Patience("p", timeout_s))  # type: ignore[arg-type]
    return asyncio.run(waiting)


def test_all_replicas_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = Serve(None, {"STARTING": 3}, {"RUNNING": 1, "STARTING": 2}, {"RUNNING": 3})
    assert ready(monkeypatch, serve, wanted=3) == 3
    assert serve.deployed == 1


def test_a_run_starts_with_those_that_found_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "OTHERS_WAIT_S", 0.0)
    serve = Serve({"STARTING": 3}, {"RUNNING": 1, "STARTING": 2})
    assert ready(monkeypatch, serve, wanted=3) == 1
    assert serve.deployed == 0


def test_replicas_of_a_machine_that_is_about_to_leave_still_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ready(monkeypatch, Serve({"RUNNING": 1, "PENDING_MIGRATION": 1}), wanted=2) == 2


@pytest.mark.parametrize(
    ("message", "reason"),
    [("no machine has room", "no machine has room"), ("", readiness.NO_REASON)],
)
def test_replicas_that_do_not_get_ready_are_given_up(
    monkeypatch: pytest.MonkeyPatch, message: str, reason: str
) -> None:
    with pytest.raises(TimeoutError) as caught:
        ready(monkeypatch, Serve({"STARTING": 2}, message=message), wanted=2, timeout_s=0.0)
    assert str(caught.value) == (
        "none of 2 replicas was ready within cluster.machines_timeout_s = 0 "
        f"(raise it if machines or the model take longer): {reason}"
    )


def test_the_first_run_deploys_and_the_last_one_removes() -> None:
    uses = Uses()
    assert uses.renew("app", "one", 0.0)
    assert not uses.renew("app", "two", 1.0)
    assert uses.renew("other", "two", 1.0)
    assert not uses.leave("app", "one")
    assert uses.renew("app", "two", 2.0)
    assert not uses.leave("app", "one")
    assert uses.leave("app", "two")
    assert not uses.leave("app", "two")
    assert uses.leave("other", "two")


def test_a_run_that_is_silent_is_gone() -> None:
    uses = Uses()
    uses.renew("app", "killed", 0.0)
    uses.renew("app", "alive", 0.0)
    uses.renew("app", "alive", USE_S)
    assert uses.silent(USE_S) == []
    assert uses.silent(USE_S + 1) == [("app", "killed")]


def test_only_what_is_the_same_is_shared() -> None:
    same = application_name("policy", SPEC)
    assert same == application_name("policy", replace(SPEC))
    assert same != application_name("policy", replace(SPEC, max_batch=8))
    assert same != application_name("prm", SPEC)
    assert len(code_digest()) == 64
