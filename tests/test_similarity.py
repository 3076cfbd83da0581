"""Similar taps are found on real samples: planted ones exactly, unrelated ones not, whatever the basis and scale."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.mapping import layer_map
from edgestill.similarity import linear_cka, similarity, tap_features


def features(samples: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(samples, width))


def rotation(width: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(features(width, width, seed))[0]


def hsic(K: np.ndarray, L: np.ndarray) -> float:
    """HSIC₁ of Song et al. 2012 as it is printed there and in arXiv 2010.15327."""
    n, ones = len(K), np.ones(len(K))
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    total = np.trace(K @ L) + (ones @ K @ ones) * (ones @ L @ ones) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * ones @ K @ L @ ones) / (n * (n - 3))


@pytest.mark.parametrize(("samples", "width", "other"), [(4, 1, 1), (5, 3, 7), (40, 6, 9), (30, 200, 80)])
def test_cka_is_the_printed_formula(samples, width, other):
    x = features(samples, width) + 3.0
    y = x[:, :1] * features(1, other, 1) + features(samples, other, 2)
    K, L = x @ x.T, y @ y.T
    assert linear_cka(x, y) == pytest.approx(hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L)), abs=1e-9)


@pytest.mark.parametrize("width", [3, 100])
def test_cka_is_one_at_equality_and_knows_no_rotation_scale_shift_or_order(width):
    x, y = features(50, width), features(50, 20, 1)
    y[:, :3] += 3 * x[:, :3]
    assert linear_cka(x, x) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, -4 * x @ rotation(width) + 7) == pytest.approx(1, abs=1e-9)
    told = linear_cka(x, y)
    assert 0.05 < told < 0.95
    assert linear_cka(y, x) == pytest.approx(told, abs=1e-12)
    assert linear_cka(1e-4 * x @ rotation(width), 300 * y @ rotation(20, 2) - 5) == pytest.approx(told, abs=1e-9)
    order = np.random.default_rng(3).permutation(50)
    assert linear_cka(x[order], y[order]) == pytest.approx(told, abs=1e-12)


def test_unrelated_features_far_wider_than_there_are_samples_are_not_alike():
    told = [linear_cka(features(64, 2000, seed), features(64, 2000, seed + 100)) for seed in range(10)]
    assert abs(np.mean(told)) < 0.02
    assert max(np.abs(told)) < 0.1


def test_half_precision_features_lose_nothing_in_the_sums():
    x, y = features(64, 500).astype(np.float16) * 200, features(64, 30, 1).astype(np.float16)
    assert linear_cka(x, y) == pytest.approx(linear_cka(x.astype(np.float64), y.astype(np.float64)), abs=1e-12)


def test_a_constant_tap_is_like_nothing():
    constant = np.tile(features(1, 300), (11, 1))
    assert linear_cka(constant, features(11, 3)) == 0


def test_rows_are_student_taps_and_columns_teacher_taps():
    x, y = features(20, 3), features(20, 5, 1)
    table = similarity({"a": x, "b": y}, {"1": y, "2": 2 * x, "3": features(20, 4, 2)})
    assert table.shape == (2, 3)
    assert table[0, 1] == pytest.approx(1)
    assert table[1, 0] == pytest.approx(1)
    assert table[0, 0] == pytest.approx(linear_cka(x, y))


def test_features_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match="the same samples are needed; 8 and 9 came"):
        linear_cka(features(8, 2), features(9, 2))
    with pytest.raises(UserError, match="at least 4 samples; 3 came"):
        linear_cka(features(3, 2), features(3, 2))
    with pytest.raises(UserError, match="taps on both sides; 0 and 1 came"):
        similarity({}, {"1": features(8, 2)})
    with pytest.raises(UserError, match="finite features; tap 'b' put out inf or nan"):
        similarity({"a": features(8, 2)}, {"b": np.full((8, 2), np.inf)})


class Net(nn.Module):
    """Six convolutions with residual sums, as deep networks have: neighbours are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)) for _ in range(6)
        )
        self.head = nn.Linear(12, 10)
        self.places = nn.ModuleList(nn.Identity() for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        for block, place in zip(self.blocks, self.places, strict=True):
            x = place(functional.relu(x + block(x)))
        return self.head(x.mean(dim=(2, 3)))


TEACHER_TAPS = [f"places.{place}" for place in range(6)]


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)


@pytest.fixture(scope="module")
def teacher(digits: tuple[torch.Tensor, torch.Tensor]) -> Net:
    """Fitted for a moment: 200 steps."""
    torch.manual_seed(0)
    images, labels = digits
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(200):
        rows = torch.randint(512, len(labels), (64,))
        optimizer.zero_grad()
        functional.cross_entropy(net(images[rows]), labels[rows]).backward()
        optimizer.step()
    return net.eval()


class Planted(nn.Module):
    """A student whose i-th tap is the teacher's tap `plan[i]` in other channels, rotated, scaled, and with noise."""

    def __init__(self, teacher: Net, plan: list[int], noise: float) -> None:
        super().__init__()
        self.teacher, self.plan, self.noise = teacher, plan, noise
        self.taps = nn.ModuleList(nn.Conv2d(12, 12, 1, bias=False) for _ in plan)
        for scale, tap in enumerate(self.taps, start=1):
            tap.weight = nn.Parameter(scale * torch.linalg.qr(torch.randn(12, 12))[0][:, :, None, None])

    def forward(self, x: torch.Tensor) -> None:
        x = functional.relu(self.teacher.stem(x))
        told = []
        for block in self.teacher.blocks:
            x = functional.relu(x + block(x))
            told.append(x)
        for tap, place in zip(self.taps, self.plan, strict=True):
            tap(told[place] + self.noise * told[place].std() * torch.randn_like(told[place]))


def test_planted_maps_are_recovered_exactly_whatever_they_are(teacher, digits):
    torch.manual_seed(1)
    random = np.random.default_rng(1)
    batches = digits[0][:384].split(128)
    told = tap_features(teacher, batches, TEACHER_TAPS)
    for _ in range(40):
        plan = sorted(random.choice(6, random.integers(1, 7), replace=False).tolist())
        student = Planted(teacher, plan, noise=0.5)
        names = [f"taps.{place}" for place in range(len(plan))]
        table = similarity(tap_features(student, batches, names), told)
        expected = [(name, TEACHER_TAPS[place]) for name, place in zip(names, plan, strict=True)]
        assert layer_map(names, TEACHER_TAPS, "auto", table) == expected


def test_features_come_batch_by_batch_as_from_one_batch(teacher, digits):
    images = digits[0][:50]
    whole = tap_features(teacher, [images], ["places.0", "head"])
    pieces = tap_features(teacher, iter(images.split(20)), ["places.0", "head"])
    assert whole["places.0"].shape == (50, 12 * 4 * 4)
    assert whole["head"].shape == (50, 10)
    np.testing.assert_allclose(pieces["places.0"], whole["places.0"], atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "width"),
    [
        ((2, 5), 5),
        ((2, 7, 5), 35),
        ((2, 64, 5), 80),
        ((2, 3, 32, 32), 48),
        ((2, 3, 2, 8), 24),
        ((2, 3, 1, 1), 3),
        ((2, 8, 8, 3), 48),
    ],
)
def test_what_is_kept_of_a_tap_does_not_grow_with_its_resolution(shape, width):
    tap = torch.randn(shape)
    kept = tap_features(nn.Sequential(nn.Identity()), [tap], ["0"])["0"]
    assert kept.shape == (2, width)
    if shape == (2, 64, 5):
        np.testing.assert_allclose(kept[1].reshape(5, 16)[:, 0], tap[1, :4].mean(0), atol=1e-6)
    if shape == (2, 3, 32, 32):
        np.testing.assert_allclose(kept[1].reshape(3, 4, 4)[0, 3, 0], tap[1, 0, 24:, :8].mean(), atol=1e-6)


def test_the_model_is_measured_in_evaluation_mode_and_left_as_it_was(digits):
    torch.manual_seed(0)
    net = Net().train()
    net.blocks[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    first, again = (tap_features(net, [digits[0][:32]], ["head"])["head"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(part._forward_hooks for part in net.modules())
    with pytest.raises(UserError, match=r"no tap 'place\.0'"):
        tap_features(net, [digits[0][:32]], ["place.0"])
    assert [part.training for part in net.modules()] == modes


def test_taps_of_other_shapes_are_refused():
    with pytest.raises(UserError, match=r"'0' puts out \[2, 3, 4, 4, 4\]"):
        tap_features(nn.Sequential(nn.Identity()), [torch.zeros(2, 3, 4, 4, 4)], ["0"])
