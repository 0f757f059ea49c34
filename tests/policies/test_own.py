"""A class of the user as the policy: what it may do, and a sentence for each thing that it does wrong."""

import numpy as np
import pytest

from modelswarms_fast.errors import InputError
from modelswarms_fast.policies import find_policy, load_policy, problem_of
from modelswarms_fast.policies.space import space_of


def policy_of(name, space="affine"):
    return load_policy(f"helpers_policies:{name}", problem_of(space_of(space, 3), 4, 0))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Raises", r"ask\(\) raised KeyError: 'no\\nidea'; correct it"),
        ("Shape", r"ask\(\) returned the shape \[3, 3\]; return \[4, 3\], one a particle"),
        ("Texts", r"ask\(\) returned 'a few'; return numbers \[4, 3\]"),
        ("NotFinite", r"ask\(\) returned NaN or infinity"),
        ("Outside", r"ask\(\) returned \[1\.25, 0\.0, 0\.0\], outside of the space; there coefficients sum to 1"),
    ],
)
def test_a_wrong_answer_is_one_sentence_that_names_the_class(name, words):
    policy = policy_of(name)
    policy.tell(np.eye(3)[[0, 1, 2, 0]], np.zeros(4))
    with pytest.raises(InputError, match=f'^policy "helpers_policies:{name}": {words}'):
        policy.ask()


def test_what_is_outside_of_one_space_may_be_inside_of_another():
    assert policy_of("Outside", "free").ask().max() == 1.25
    assert policy_of("Outside", "scaled").ask().max() == 1.25


def test_a_class_that_cannot_be_made_or_told():
    with pytest.raises(InputError, match=r'^policy "helpers_policies:WillNotBegin": the constructor raised Runtime'):
        policy_of("WillNotBegin")
    with pytest.raises(InputError, match=r'WillNotListen": tell\(\) raised ValueError: no ears'):
        policy_of("WillNotListen").tell(np.zeros((4, 3)), np.zeros(4))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("helpers_policies:Mute", "the class has no method tell"),
        ("helpers_policies:Missing", "the module has no class Missing"),
        ("helpers_policies:number", "the module has no class number"),
        ("no_such_module_here:Climber", "cannot import the module of policy"),
        ("helpers_policies:", "not of the form module:class, as in my_search:Climber"),
    ],
)
def test_what_is_no_policy_is_known_before_anything_starts(name, words):
    with pytest.raises(InputError, match=words):
        find_policy(name)


def test_a_class_gets_copies():
    policy, mixtures = policy_of("Climber"), np.eye(3)[[0, 1, 2, 0]]
    policy.tell(mixtures, np.arange(4.0))
    mixtures[:] = np.nan
    assert np.isfinite(policy.ask()).all()
