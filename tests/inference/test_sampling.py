"""How one id is chosen: what may be drawn, how often, and that nothing but seed, key and position decides."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from inference.sampling import SamplingConfig, choose, gumbels, log_probabilities, uniform

samplings = st.builds(
    SamplingConfig,
    temperature=st.floats(0.3, 3.0),
    top_k=st.integers(0, 25),
    top_p=st.floats(0.05, 1.0),
    repetition_penalty=st.sampled_from([1.0, 1.15, 2.0]),
)


def drawn_by_transformers(logits: torch.Tensor, said: list[int], sampling: SamplingConfig) -> torch.Tensor:
    """Probabilities after the processors of ``transformers``, in its order."""
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    steps.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        steps.append(TopPLogitsWarper(sampling.top_p))
    return steps(torch.tensor([said]), logits.clone()).softmax(-1)


@settings(max_examples=60)
@given(samplings, st.integers(0, 10**6))
def test_ids_are_drawn_as_transformers_would(sampling, seed):
    """Its log-probabilities are those of its processors, and draws over all of [0, 1) hit every id in proportion."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(1, 20)).astype(np.float32) * 2)
    said = [int(one) for one in rng.choice(20, 6, replace=False)]
    table = torch.zeros((1, 20), dtype=torch.bool)
    table[0, said] = True
    expected = drawn_by_transformers(logits, said, sampling)
    torch.testing.assert_close(log_probabilities(logits, table, sampling).exp(), expected, atol=1e-5, rtol=1e-4)
    count = 4000
    uniforms = (torch.arange(count, dtype=torch.double) + 0.5) / count
    chosen = choose(logits.expand(count, -1), table.expand(count, -1), sampling, uniforms)
    shares = torch.bincount(chosen, minlength=20) / count
    torch.testing.assert_close(shares[None], expected, atol=2.1 / count, rtol=0)


@given(st.integers(0, 10**6), st.sampled_from([0, 1, 5]), st.floats(0.05, 1.0))
def test_without_temperature_the_likeliest_is_taken(seed, top_k, top_p):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(4, 9)).astype(np.float32))
    sampling = SamplingConfig(temperature=0.0, top_k=top_k, top_p=top_p)
    assert choose(logits, None, sampling, torch.zeros(0)).tolist() == logits.argmax(-1).tolist()


def test_the_first_and_the_last_draw_are_ids_that_may_be_drawn():
    """The sums are rounded; no draw may fall off their end onto an id that was cut."""
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 300)).astype(np.float32))
    last = torch.full((500,), 1 - 2.0**-52, dtype=torch.double)
    for sampling in (SamplingConfig(top_p=0.6), SamplingConfig(top_k=7), SamplingConfig()):
        allowed = log_probabilities(logits, None, sampling) > float("-inf")
        for uniforms in (last, torch.zeros(500, dtype=torch.double)):
            chosen = choose(logits, None, sampling, uniforms)
            assert allowed.gather(1, chosen[:, None]).all()


def test_a_draw_depends_on_seed_key_and_position_alone():
    draws = {uniform(*one) for one in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]}
    assert len(draws) == 4 and all(0 <= one < 1 for one in draws)
    assert uniform(0, "a", 0) == uniform(0, "a", 0)
    assert torch.equal(gumbels(3, "a", 1, 9), gumbels(3, "a", 1, 9))
    many = np.array([uniform(0, "k", position) for position in range(4000)])
    assert abs(many.mean() - 0.5) < 0.02 and abs((many < 0.1).mean() - 0.1) < 0.02


@pytest.mark.parametrize("field", [{"top_p": 0.0}, {"temperature": -1.0}, {"top_k": -1}, {"num_beams": 0}])
def test_what_makes_no_sampling_is_refused(field):
    with pytest.raises(ValueError, match="greater than"):
        SamplingConfig(**field)
