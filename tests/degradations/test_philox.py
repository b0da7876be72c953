"""Counter-based random numbers: the published test vectors, and what is made of the words."""

import math

import pytest
import torch

from ipt_fast.degradations.philox import NOISE, RAIN_FOLDER, RAIN_IMAGE, RAIN_STREAK, normal_pair, philox, uniform

# Key (low, high), counter, words: "known answer tests" of Random123, philox4x32 with 10 rounds.
ANSWERS = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 2, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def as_seed(low, high):
    value = low | high << 32
    return torch.tensor([value - (1 << 64) if value >= 1 << 63 else value])


@pytest.mark.parametrize("key, counter, words", ANSWERS)
def test_known_answers(key, counter, words):
    assert [int(word) for word in philox(as_seed(*key), *counter)] == list(words)


def test_places_broadcast_and_stand_on_their_own():
    seeds = torch.tensor([3, -5, 2**62])
    words = philox(seeds[:, None, None], torch.arange(4), torch.arange(5)[:, None], NOISE)
    assert all(word.shape == (3, 5, 4) and word.dtype == torch.int64 for word in words)
    alone = philox(seeds[1:2], 2, 4, NOISE)
    assert [int(word[1, 4, 2]) for word in words] == [int(word) for word in alone]


def test_uses_do_not_share_numbers():
    uses = (NOISE, RAIN_IMAGE, RAIN_STREAK, RAIN_FOLDER)
    words = [philox(torch.arange(1000), 0, 0, use)[0] for use in uses]
    assert len(torch.cat(words).unique()) > 3990


def test_uniform_lies_inside_0_to_1():
    ends = uniform(torch.tensor([0, 2**32 - 1]))
    assert ends.dtype == torch.float32
    assert 0 < ends[0] < 1e-7 and 1 - 1e-6 < ends[1] < 1


def test_uniform_and_normal_have_their_moments():
    n = 1 << 18
    words = philox(torch.tensor([9]), torch.arange(n), 0)
    u = uniform(words[0]).double()
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert u.histc(64, 0, 1).sub(n / 64).abs().max() < 5 * math.sqrt(n / 64)
    a, b = (x.double() for x in normal_pair(words[1], words[2]))
    assert abs((a * b).mean()) < 5 / math.sqrt(n)
    for x in (a, b):
        assert abs(x.mean()) < 5 / math.sqrt(n)
        assert abs(x.var() - 1) < 5 * math.sqrt(2 / n)
        assert abs((x**3).mean()) < 5 * math.sqrt(15 / n)
        assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / n)
        # Share beyond 1, 2 and 3 standard deviations.
        for k in (1, 2, 3):
            share = math.erfc(k / math.sqrt(2))
            assert abs((x.abs() > k).double().mean() - share) < 5 * math.sqrt(share / n)
        assert x.abs().max() < 5.8
