from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_zmq.agent.nstep import n_step_transitions, num_complete
from apex_zmq.types import COLUMNS, TRANSITION, Transitions

Step = tuple[float, bool, bool, float, float]  # reward, terminated, truncated, q_taken, next_value

value = st.floats(-10, 10, width=32)
# Ends are frequent, so that one-step episodes and adjacent ends occur.
runs = st.lists(
    st.tuples(value, st.sampled_from([False, False, False, True]), st.sampled_from([False, False, True]), value, value),
    max_size=40,
)


def transitions(run: list[Step], n: int, gamma: float, *, cut: bool = False) -> Transitions:
    reward, terminated, truncated, q_taken, next_value = zip(*run, strict=True) if run else ((),) * 5
    return n_step_transitions(
        np.array(reward, np.float32),
        np.array(terminated, bool),
        np.array(truncated, bool),
        np.array(q_taken, np.float32),
        np.array(next_value, np.float32),
        n,
        gamma,
        cut=cut,
    )


def walk(run: list[Step], start: int, n: int, gamma: float) -> tuple[float, float, int, float] | None:
    """One transition, step by step; None where its end is not known yet."""
    total, factor = 0.0, 1.0
    for k, (reward, terminated, truncated, _, next_value) in enumerate(run[start : start + n], start=1):
        total += factor * reward
        factor *= gamma
        if terminated:
            return total, 0.0, k, abs(total - run[start][3])
        if truncated or k == n:
            return total, factor, k, abs(total + factor * next_value - run[start][3])
    return None


@given(runs, st.integers(1, 6), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_transitions_match_a_step_by_step_reference(run: list[Step], n: int, gamma: float) -> None:
    expected = [walk(run, start, n, gamma) for start in range(len(run))]
    got = transitions(run, n, gamma)
    count = len(got)
    # Exactly the leading steps whose end is known are there: none is skipped, none is made up.
    assert all(transition is not None for transition in expected[:count])
    assert all(transition is None for transition in expected[count:])
    known = [transition for transition in expected if transition is not None]
    for index, name in enumerate(("reward", "discount", "steps", "td_error")):
        np.testing.assert_allclose(got[name], [transition[index] for transition in known], rtol=1e-5, atol=1e-5)


def walk_with_cuts(run: list[Step], start: int, last: int, gamma: float) -> tuple[float, int]:
    """Return of the steps from start to last with the value of its end, and the number of its steps."""
    reward, terminated, _, _, next_value = run[start]
    if start == last:
        return reward + (0.0 if terminated else gamma * next_value), 1
    later, steps = walk_with_cuts(run, start + 1, last, gamma)
    if run[start + 1][3] < next_value and later < next_value:  # explored, and did worse
        return reward + gamma * next_value, 1
    return reward + gamma * later, steps + 1


# Few values, so that many actions are greedy and many returns equal.
@given(
    st.lists(
        st.tuples(
            st.sampled_from([-1.0, 0.0, 1.0]),
            st.sampled_from([False, False, False, True]),
            st.sampled_from([False, False, True]),
            st.sampled_from([0.0, 1.0, 2.0]),
            st.sampled_from([0.0, 1.0, 2.0]),
        ),
        max_size=40,
    ),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.5, 1.0]),  # exact in floating point
)
def test_cut_returns_match_a_recursive_reference(run: list[Step], n: int, gamma: float) -> None:
    got, uncut = transitions(run, n, gamma, cut=True), transitions(run, n, gamma)
    assert len(got) == len(uncut)
    for start, (transition, plain) in enumerate(zip(got, uncut, strict=True)):
        value, steps = walk_with_cuts(run, start, start + int(plain["steps"]) - 1, gamma)
        assert transition["steps"] == steps
        bootstrap = transition["discount"] * run[start + steps - 1][4] if transition["discount"] else 0.0
        assert transition["reward"] + bootstrap == pytest.approx(value)
        assert transition["td_error"] == pytest.approx(abs(value - run[start][3]))


def test_returns_are_cut_before_exploration_that_did_worse_only() -> None:
    greedy, explored = (0.0, False, False, 5.0, 5.0), (0.0, False, False, 1.0, 5.0)
    fall, find = (-3.0, True, False, 5.0, 0.0), (9.0, True, False, 5.0, 0.0)
    assert transitions([greedy, explored, fall], 3, 1.0, cut=True)["steps"].tolist() == [1, 2, 1]
    assert transitions([greedy, explored, find], 3, 1.0, cut=True)["steps"].tolist() == [3, 2, 1]
    assert transitions([greedy, greedy, fall], 3, 1.0, cut=True)["steps"].tolist() == [3, 2, 1]


@given(runs, st.integers(1, 6), st.integers(1, 15), st.booleans())
def test_transitions_are_equal_when_a_run_is_cut_into_pieces(run: list[Step], n: int, piece: int, cut: bool) -> None:
    whole = transitions(run, n, 0.9, cut=cut)
    pieces, held = [], []
    for step in run:
        held.append(step)
        ready = transitions(held, n, 0.9, cut=cut)
        if len(ready) >= piece:
            pieces.append(ready["reward"][:piece])
            held = held[piece:]
    pieces.append(transitions(held, n, 0.9, cut=cut)["reward"])
    np.testing.assert_array_equal(np.concatenate(pieces), whole["reward"])


def test_a_terminal_end_does_not_bootstrap_and_a_truncated_one_does() -> None:
    for terminated, truncated, discount in ((True, False, 0.0), (False, True, 0.25), (True, True, 0.0)):
        run = [(1.0, False, False, 0.0, 99.0), (2.0, terminated, truncated, 0.0, 8.0), (4.0, False, False, 0.0, 99.0)]
        got = transitions(run, 3, 0.5)
        assert got["reward"].tolist() == [2.0, 2.0]
        assert got["steps"].tolist() == [2, 1]
        assert got["discount"].tolist() == [discount, discount * 2]
        assert got["td_error"].tolist() == [2.0 + discount * 8, 2.0 + discount * 2 * 8]


def test_the_value_after_a_terminal_step_is_not_read() -> None:
    got = transitions([(3.0, True, False, 1.0, float("nan"))], 4, 0.9)
    assert got["td_error"].tolist() == [2.0]


def test_fields_filled_in_by_the_actor_are_zero() -> None:
    got = transitions([(1.0, True, False, 0.0, 0.0)] * 3, 2, 0.9)
    assert got.dtype == TRANSITION
    for name in set(COLUMNS) - {"reward", "discount", "steps", "td_error"}:
        assert not got[name].any()


@pytest.mark.parametrize(
    ("ends", "n", "expected"),
    [
        ("", 3, 0),
        ("..", 3, 0),
        ("...", 3, 1),
        (".....", 3, 3),
        ("E", 3, 1),
        (".E.", 3, 2),
        (".E...", 3, 3),
        ("..", 1, 2),
    ],
)
def test_num_complete(ends: str, n: int, expected: int) -> None:
    assert num_complete(np.array([end == "E" for end in ends], bool), n) == expected
