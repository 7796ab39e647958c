"""Recipes: carried out, they are stage-by-stage mixing of a copy of all images."""

import itertools

import numpy as np
import pytest
import torch

from kcd_core.recipes import MixRecipes, blend, carry_out


def random_stages(n, stages, mixed, seed):
    """(tail, dropped, weights) of each stage: within one, no sample is in both."""
    rng = np.random.default_rng(seed)
    for _ in range(stages):
        samples = rng.permutation(n)[: 2 * mixed]
        yield samples[:mixed], samples[mixed:], rng.uniform(0.7, 1, mixed).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_recipes_of_random_stages(seed):
    """Samples are tail and dropped again and again, in any order."""
    n = 12
    images = np.random.default_rng(seed).integers(0, 256, (n, 3, 3), dtype=np.uint8)
    recipes, now = MixRecipes(), images.copy()
    for stage, (tail, dropped, weights) in enumerate(random_stages(n, 15, 4, seed), 1):
        recipes = recipes.with_stage(tail, dropped, weights, stage)
        before = now.copy()
        for a, b, w in zip(tail, dropped, weights, strict=True):
            now[a] = (
                before[a].astype(np.float32) * w + before[b].astype(np.float32) * np.float32(1 - float(w))
            ).astype(np.uint8)
        for i in range(n):
            np.testing.assert_array_equal(carry_out(i, recipes.steps(i), images.__getitem__), now[i])
    everything = np.arange(n)
    assert recipes.contains(everything).tolist() == [len(recipes.steps(i)) > 0 for i in everything]
    assert len(recipes) == 60


class Counting:
    """An image array that counts how often each image is read."""

    def __init__(self, images):
        self.images, self.reads = images, np.zeros(len(images), int)
        self.ndim, self.shape = images.ndim, images.shape

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads[index] += 1
        return self.images[index]


def test_two_thousand_stages_deep():
    """No recursion, and every raw image read once."""
    n = 50
    images = np.random.default_rng(0).integers(0, 256, (n, 2, 2), dtype=np.uint8)
    recipes, now = MixRecipes(), images.copy()
    for stage, (tail, dropped, weights) in enumerate(random_stages(n, 2000, 3, 1), 1):
        recipes = recipes.with_stage(tail, dropped, weights, stage)
        before = now.copy()
        for a, b, w in zip(tail, dropped, weights, strict=True):
            now[a] = (
                before[a].astype(np.float32) * w + before[b].astype(np.float32) * np.float32(1 - float(w))
            ).astype(np.uint8)
    assert max(len(recipes.steps(i)) for i in range(n)) > 5000
    for i in range(0, n, 7):
        counting = Counting(images)
        np.testing.assert_array_equal(carry_out(i, recipes.steps(i), counting.__getitem__), now[i])
        assert counting.reads.max() == 1


def test_a_chain_two_thousand_stages_long():
    """Each stage's tail takes in the tail of the one before."""
    stages = 2000
    recipes = MixRecipes(
        np.arange(1, stages + 1), np.arange(stages), np.full(stages, 0.75), np.arange(1, stages + 1)
    )
    steps = recipes.steps(stages)
    assert len(steps) == stages
    assert steps[0] == (1, 0, 0.75)
    image = carry_out(stages, steps, lambda i: np.full((1,), float(i)))
    expected = 0.0
    for i in range(1, stages + 1):
        expected = 0.75 * i + 0.25 * expected
    assert image[0] == pytest.approx(expected)


def test_recipe_takes_the_source_as_it_was_before_the_stage():
    recipes = MixRecipes([1, 0, 1], [0, 2, 0], [0.5, 0.5, 0.5], [1, 2, 3])
    assert recipes.steps(1) == ((1, 0, 0.5), (0, 2, 0.5), (1, 0, 0.5))
    assert recipes.steps(0) == ((0, 2, 0.5),)
    assert recipes.steps(2) == ()
    assert MixRecipes().steps(3) == ()
    later = MixRecipes([1, 0, 3], [0, 2, 1], [0.5, 0.5, 0.5], [1, 2, 3])
    assert later.steps(1) == ((1, 0, 0.5),)  # what happens to a source afterwards is not its business
    assert later.steps(3) == ((1, 0, 0.5), (3, 1, 0.5))


def test_rows_may_come_in_any_order():
    rows = [(1, 0, 0.5, 1), (0, 2, 0.75, 2), (1, 0, 0.875, 3), (3, 1, 0.25, 4)]
    expected = [MixRecipes(*zip(*rows, strict=True)).steps(i) for i in range(4)]
    assert expected[3] == ((1, 0, 0.5), (0, 2, 0.75), (1, 0, 0.875), (3, 1, 0.25))
    for order in itertools.permutations(rows):
        recipes = MixRecipes(*zip(*order, strict=True))
        assert [recipes.steps(i) for i in range(4)] == expected


def test_a_further_stage_leaves_the_recipes_as_they_were():
    before = MixRecipes([1], [0], [0.5], [1])
    after = before.with_stage([2], [1], [0.5], 2)
    assert (len(before), before.steps(2)) == (1, ())
    assert after.steps(2) == ((1, 0, 0.5), (2, 1, 0.5))


def test_no_recipe_contains_nothing():
    assert MixRecipes().contains(np.arange(3)).tolist() == [False] * 3
    assert MixRecipes([1], [0], [0.5], [1]).contains(np.array([0, 1, 2, 9])).tolist() == [
        False,
        True,
        False,
        False,
    ]


def test_images_of_two_shapes_are_named():
    with pytest.raises(
        ValueError, match=r"samples 2 and 7 can't be mixed: their shapes are \(2,\) and \(7,\)"
    ):
        carry_out(2, ((2, 7, 0.5),), np.zeros)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", "float32", "float64"])
def test_blending_is_one_for_arrays_and_tensors(dtype):
    a, b = (np.random.default_rng(seed).integers(0, 200, 50).astype(dtype) for seed in range(2))
    mixed, tensor = blend(a, b, 0.7), blend(torch.from_numpy(a), torch.from_numpy(b), 0.7)
    assert mixed.dtype == a.dtype
    exact = a.astype(float) * 0.7 + b.astype(float) * 0.3
    assert (np.abs(mixed - exact) <= (1 if mixed.dtype.kind in "iu" else 1e-3 * exact)).all()
    np.testing.assert_array_equal(tensor.numpy(), mixed)
    assert blend(a, b, 1.0).tolist() == a.tolist()
