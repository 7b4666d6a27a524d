"""Policies decide as those of Orbax do, and where they are ours, as they say."""

import dataclasses
import datetime as dt
import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st
from orbax.checkpoint import v1 as orbax

from stowax import options, training
from stowax.training import preservation_policies as keep
from stowax.training import save_decision_policies as when
from stowax.training.preservation_policies import PreservationContext

THEIRS = orbax.training
EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
NOW = EPOCH + dt.timedelta(days=1)


def loss(metrics):
    """What ranks a step."""
    return metrics["loss"]


@st.composite
def checkpoints(draw):
    """Steps in ascending order, saved one after the other, some with metrics."""
    steps = draw(st.lists(st.integers(0, 60), unique=True, max_size=12))
    secs = draw(st.lists(st.integers(0, 90_000), min_size=12, max_size=12))
    losses = draw(st.lists(st.none() | st.integers(0, 5), min_size=12, max_size=12))
    return [
        training.CheckpointMetadata[None](
            step,
            f"/run/{step}",
            metadata=None,
            commit_timestamp_nsecs=int((EPOCH.timestamp() + sec) * 1e9),
            metrics=None if number is None else {"loss": number},
        )
        for step, sec, number in zip(sorted(steps), sorted(secs), losses, strict=False)
    ]


COUNTS = st.none() | st.integers(1, 5)
PRESERVATION = st.one_of(
    st.just(("PreserveAll", {})),
    st.builds(lambda n: ("LatestN", {"n": n}), COUNTS | st.just(0)),
    st.builds(
        lambda secs: ("EveryNSeconds", {"interval_secs": secs}), st.integers(0, 50_000)
    ),
    st.builds(
        lambda n, exact, most: (
            "EveryNSteps",
            {"interval_steps": n, "exact_interval": exact, "max_to_keep": most},
        ),
        st.integers(1, 20),
        st.booleans(),
        COUNTS,
    ),
    st.builds(
        lambda n, most: (
            "EveryNStepsClosest",
            {"interval_steps": n, "max_to_keep": most},
        ),
        st.integers(1, 20),
        COUNTS,
    ),
    st.builds(
        lambda steps: ("CustomSteps", {"steps": steps}), st.lists(st.integers(0, 60))
    ),
    st.builds(
        lambda n, reverse, keeps: (
            "BestN",
            {
                "get_metric_fn": loss,
                "reverse": reverse,
                "n": n,
                "keep_checkpoints_without_metrics": keeps,
            },
        ),
        COUNTS | st.just(0),
        st.booleans(),
        st.booleans(),
    ),
)


def ask_ours(name, arguments, steps):
    """What a policy of ours keeps."""
    policy = getattr(keep, name)(**arguments)
    return policy.should_preserve(steps, context=PreservationContext(now=NOW))


def ask_theirs(name, arguments, steps):
    """What its namesake keeps."""
    policy = getattr(THEIRS.preservation_policies, name)(**arguments)
    context = THEIRS.preservation_policies.PreservationContext()
    return list(policy.should_preserve(steps, context=context))


@given(checkpoints(), PRESERVATION)
def test_steps_that_stay(steps, policy):
    """Each policy keeps the steps that its namesake keeps."""
    assert ask_ours(*policy, steps) == ask_theirs(*policy, steps)


@given(checkpoints(), st.lists(PRESERVATION, min_size=1, max_size=3))
def test_steps_that_stay_for_one_of_several(steps, policies):
    """What one of several policies keeps stays."""
    ours = keep.AnyPreservationPolicy([getattr(keep, n)(**a) for n, a in policies])

    answers = [ask_theirs(name, arguments, steps) for name, arguments in policies]
    expected = [any(said) for said in zip(*answers, strict=True)]
    context = PreservationContext(now=NOW)
    assert ours.should_preserve(steps, context=context) == expected


@given(checkpoints(), st.integers(0, 90_000))
def test_steps_that_are_young_enough(steps, secs):
    """From the first step that is young enough on, all stay."""
    duration = dt.timedelta(seconds=secs)
    answers = ask_ours("LatestDuration", {"duration": duration}, steps)

    young = [step.time >= NOW - duration for step in steps]
    assert answers == [any(young[: i + 1]) for i in range(len(steps))]


@pytest.mark.parametrize("name", ["EveryNSteps", "EveryNStepsClosest"])
def test_intervals_are_positive(name):
    """An interval of no steps is refused when the policy is made."""
    with pytest.raises(ValueError, match="at least 1"):
        getattr(keep, name)(interval_steps=0)
    with pytest.raises(ValueError, match="at least 1"):
        when.FixedIntervalPolicy(0)


def decide(policy, step, previous, **context):
    """Whether a policy of ours saves a step."""
    known = {"is_saving_in_progress": False, "reached_preemption": False} | context
    return policy.should_save(
        step,
        previous,
        context=when.DecisionContext(
            multiprocessing_options=options.MultiprocessingOptions(), **known
        ),
    )


def decide_there(policy, step, previous, **context):
    """Whether a policy of Orbax saves a step."""
    known = {"is_saving_in_progress": False, "reached_preemption": False} | context
    return policy.should_save(
        step,
        previous,
        context=THEIRS.save_decision_policies.DecisionContext(
            multiprocessing_options=orbax.options.MultiprocessingOptions(), **known
        ),
    )


SAVING = st.one_of(
    st.builds(lambda n: ("FixedIntervalPolicy", {"interval": n}), st.integers(1, 20)),
    st.builds(
        lambda steps: ("SpecificStepsPolicy", {"steps": steps}),
        st.lists(st.integers(0, 60)),
    ),
    st.builds(
        lambda secs: ("ContinuousCheckpointingPolicy", {"minimum_interval_secs": secs}),
        st.none() | st.integers(0, 50_000),
    ),
    st.just(("PreemptionCheckpointingPolicy", {})),
    st.just(("InitialSavePolicy", {})),
)


@given(
    checkpoints().filter(bool),
    st.lists(SAVING, max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_steps_that_are_saved(steps, policies, is_saving, is_preempted):
    """Each policy, and any of several, saves when its namesake saves."""
    *previous, step = steps
    context = {"is_saving_in_progress": is_saving, "reached_preemption": is_preempted}
    ours = [getattr(when, name)(**arguments) for name, arguments in policies]
    theirs = [
        getattr(THEIRS.save_decision_policies, name)(**arguments)
        for name, arguments in policies
    ]

    expected = [decide_there(policy, step, previous, **context) for policy in theirs]
    found = [decide(policy, step, previous, **context) for policy in ours]
    assert found == expected
    assert decide(when.AnySavePolicy(ours), step, previous, **context) == any(expected)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (when, THEIRS.save_decision_policies),
        (keep, THEIRS.preservation_policies),
        (training.errors, THEIRS.errors),
    ],
)
def test_names_and_fields(ours, theirs):
    """Every policy of Orbax is here, and takes the same arguments."""
    names = [
        name
        for name, value in vars(theirs).items()
        if inspect.isclass(value) and value.__module__.startswith("orbax")
    ]

    assert set(names) <= set(ours.__all__)
    for name in names:
        mine, other = getattr(ours, name), getattr(theirs, name)
        if dataclasses.is_dataclass(other):
            wanted = inspect.signature(other).parameters
            given = inspect.signature(mine).parameters
            assert [given[key].default for key in wanted] == [
                parameter.default for parameter in wanted.values()
            ], name


def test_face():
    """The names of Orbax are here, and its calls fit."""
    known = {name for name in dir(THEIRS) if not name.startswith("_")}
    assert known - {"pathways"} == set(training.__all__)

    theirs, ours = THEIRS.Checkpointer, training.Checkpointer
    for name, method in vars(theirs).items():
        if name.startswith("_") or name.endswith("pytree") or "_pytree" in name:
            continue
        assert hasattr(ours, name), name
        if not callable(method) or "pytree" in name:
            continue
        wanted = inspect.signature(method).parameters
        given = inspect.signature(getattr(ours, name)).parameters
        assert list(wanted) == list(given)[: len(wanted)], name
        assert [given[key].kind for key in wanted] == [
            parameter.kind for parameter in wanted.values()
        ], name
    wanted = list(inspect.signature(theirs.__init__).parameters)
    assert wanted == list(inspect.signature(ours.__init__).parameters)
