"""People as units: weights, sums, and intervals over them, against the plain case and by hand."""

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from mechdiff import stats
from mechdiff.core.errors import ConfigError
from mechdiff.stats import clusters


def result(person=None, dims=("image",), shape=(2, 4)):
    cells = np.random.default_rng(0).normal(size=shape)
    data = xr.Dataset({"x": (("t", "image"), cells)})
    return data if person is None else data.assign_coords(person=(dims, person))


def test_without_people_an_image_is_its_own_unit():
    units = stats.units_of(result())
    shares = stats.bootstrap_weights(4, 7)
    assert (units.count, units.people) == (4, 0)
    np.testing.assert_allclose(units.weights(shares), shares)
    cells = np.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(units.sums(cells), cells)


@pytest.mark.parametrize("person", [[3, 3, -1, 4], [-1, -1, -1, -1]])
def test_half_known_people_are_not_people(person):
    assert stats.units_of(result(np.array(person))).people == 0


def test_a_person_is_drawn_with_all_pictures_and_all_alike_stay_alike():
    units = stats.units_of(result(np.array([9, 9, 9, 2])))
    assert units.people == 2
    shares = np.array([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(units.weights(shares), [[0.25] * 4, [1 / 3] * 3 + [0], [0, 0, 0, 1]])
    np.testing.assert_allclose(units.sums(np.array([[1.0, 2, 3, 4]])), [[4, 6]])


def test_where_every_timestep_has_its_own_pictures_so_has_it_its_own_people():
    person = np.array([[5, 5, 6, 6], [5, 6, 6, 7]])
    units = stats.units_of(result(person, ("t", "image")))
    weights = units.weights(np.array([[0.5, 0.5, 0.0], [0, 0, 1.0]]))
    np.testing.assert_allclose(weights[0], [[0.25] * 4, [1 / 3] * 3 + [0]])
    np.testing.assert_allclose(weights[1], [[0.25] * 4, [0, 0, 0, 1]])  # 7 is on no picture of the first
    cells = np.arange(8.0).reshape(2, 4)
    np.testing.assert_allclose(units.sums(cells), [[1, 5, 0], [4, 11, 7]])
    got = stats.weighted_mean(np.stack([cells, -cells]), weights)
    np.testing.assert_allclose(got, np.einsum("cti,mti->ctm", np.stack([cells, -cells]), weights))


def test_one_person_alone_shows_no_spread():
    with pytest.raises(ConfigError, match="1 unit"):
        stats.units_of(result(np.zeros(4, int)))


def test_students_interval_of_a_mean_by_leaving_out():
    values = np.random.default_rng(1).normal(size=(3, 9))
    units = stats.Units(np.arange(9), 9, False)
    got, expected = stats.jackknife_interval(lambda w: values @ w.T, units), stats.student_mean(values)
    for end in ("estimate", "low", "high"):
        np.testing.assert_allclose(getattr(got, end), getattr(expected, end))


@pytest.mark.parametrize("truth", [0.0, 0.3])
def test_an_average_of_sizes_is_not_above_zero_where_all_are_zero(truth):
    """Of 10 values on 16 images, the mean of whose sizes the jackknife alone calls above 0 mostly."""
    rng, units = np.random.default_rng(0), stats.Units(np.arange(16), 16, False)
    values = truth + rng.normal(size=(200, 10, 16))
    mean = lambda sizes: sizes.mean(axis=0)
    sized = [stats.size_interval(lambda w, v=v: v @ w.T, mean, units) for v in values]
    alone = [stats.jackknife_interval(lambda w, v=v: np.abs(v @ w.T).mean(0), units) for v in values]
    above = [np.mean([float(interval.low) > truth for interval in each]) for each in (sized, alone)]
    assert above[0] < 0.05 and (truth or above[1] > 0.5), above
    assert np.mean([truth <= interval.high for interval in sized]) > 0.95
    assert all(interval.estimate == other.estimate for interval, other in zip(sized, alone, strict=True))


@pytest.mark.parametrize("truth, least", [(0.0, 0.0), (0.25, 0.0), (1.0, 0.85)])
def test_a_root_mean_square_is_not_above_what_it_is_of_by_noise(truth, least):
    """Of 8 timesteps and 16 images of sd 1: by resamples alone 0, .7 and .9 of intervals cover."""
    values = truth + np.random.default_rng(0).normal(size=(300, 8, 16))
    units = stats.Units(np.arange(16), 16, False)
    interval = stats.rms_interval(lambda w: values @ w.T, units, repeats=200)
    resampled = stats.bootstrap_units(lambda w: np.sqrt(((values @ w.T) ** 2).mean(1)), units, repeats=200)
    covered, before = (((each.low <= truth) & (truth <= each.high)).mean() for each in (interval, resampled))
    assert covered > 0.95 and (truth == 1 or before < 0.8), (covered, before)
    assert ((interval.low > 0).mean() >= least) and (interval.low <= interval.estimate).all()
    assert truth or (interval.low > 0).mean() < 0.03


@pytest.mark.parametrize("size", [np.r_[4.0, 2, 1, 1, np.zeros(24)], np.full(28, 0.3)])
def test_an_effective_number_is_not_sure_to_be_what_noise_makes_of_it(size):
    """Of 16 images of sd 1: where most have no effect it rises, where all have the same it falls."""
    rng, units = np.random.default_rng(0), stats.Units(np.arange(16), 16, False)
    truth, covered, before = stats.effective_number(size[:, None])[0], [], []
    for _ in range(60):
        of = (size[:, None] + rng.normal(size=(28, 16))).__matmul__
        now = stats.effective_interval(lambda w, of=of: of(w.T), units, repeats=100)
        old = stats.bootstrap_units(lambda w, of=of: stats.effective_number(of(w.T)), units, repeats=100)
        for interval, outcomes in ((now, covered), (old, before)):
            outcomes.append(interval.low <= truth <= interval.high + 1e-9)
        assert now.estimate == old.estimate and 1 <= now.low <= old.low and old.high <= now.high <= 28
    assert np.mean(covered) > 0.93 and np.mean(before) < 0.1, (np.mean(covered), np.mean(before))


def test_an_effective_number_of_one_effect_is_one_and_of_none_unknown():
    units = stats.Units(np.arange(4), 4, False)
    for effect, expected in ((1.0, 1.0), (0.0, np.nan)):
        interval = stats.effective_interval(lambda w, e=effect: np.full((1, len(w)), e), units)
        ends = np.stack([interval.estimate, interval.low, interval.high])
        np.testing.assert_array_equal(ends, np.full(3, expected))


def test_quantiles_of_hardly_one_independent_image_may_be_anywhere():
    """Of two people; the lower end was the largest of all numbers, above the estimate."""
    values = np.random.default_rng(0).normal(size=(50, 1, 8))
    interval = stats.quantile_interval(values, stats.Units(np.r_[1, np.zeros(7, int)], 2, True), (0.05, 0.95))
    assert (interval.low <= interval.estimate).all() and (interval.estimate <= interval.high).all()


def test_an_interval_that_some_resamples_do_not_know_has_no_end():
    first = lambda w: np.where(w[:, 0] > 0, w[:, 0], np.nan)[None]
    interval = stats.bootstrap(first, stats.bootstrap_weights(8, 200))
    assert np.isnan([interval.low, interval.high]).all() and interval.estimate == 1 / 8


def test_pseudo_values_of_a_mean_are_the_values_and_unbias_a_square():
    rng = np.random.default_rng(2)
    values = rng.normal(size=6)
    without = (values.sum() - values) / 5
    np.testing.assert_allclose(stats.pseudo_values(values.mean(), without), values)
    unbiased = values.mean() ** 2 - values.var(ddof=1) / 6
    assert stats.pseudo_values(values.mean() ** 2, without**2).mean() == pytest.approx(unbiased)


def test_the_cluster_bootstrap_covers_where_the_plain_one_does_not():
    """20 people of 10 pictures each, half of the variance between people; truth 0."""
    rng, hits = np.random.default_rng(3), {True: 0, False: 0}
    person = np.repeat(np.arange(20), 10)
    for number in range(300):
        cells = rng.normal(size=20)[person] + rng.normal(size=200)
        for known in hits:
            units = stats.Units(person, 20, True) if known else stats.Units(np.arange(200), 200, False)
            statistic = lambda w: w @ cells  # noqa: B023
            kept = {"repeats": 200, "seed": number, "method": "percentile"}
            results = clusters.bootstrap_units(statistic, units, **kept)
            hits[known] += bool(results.low <= 0 <= results.high)
    assert hits[True] > 270 and hits[False] < 220


def test_people_count_as_many_only_with_equal_numbers_of_images():
    even, uneven = (stats.Units(np.repeat(np.arange(7), n), 7, True) for n in ([3] * 7, [15, *[1] * 6]))
    assert even.effective == 7 and uneven.effective == pytest.approx(21**2 / (15**2 + 6))
    assert stats.Units(np.array([[0, 0, 1], [0, 1, 1]]), 2, True).effective == 2
    assert stats.kish(np.zeros(2, int)) == 0
    values = np.random.default_rng(0).normal(size=(5, 21))

    def ends(units, effective=None):
        got = stats.bootstrap_units(lambda w: values @ w.T, units, effective=effective)
        return np.array([got.low, got.high])

    np.testing.assert_array_equal(ends(even), ends(even, 7))  # to the bit
    assert (np.diff(ends(uneven), axis=0) > np.diff(ends(uneven, 7), axis=0)).all()
    left_out = [stats.jackknife_interval(lambda w: values @ w.T, units) for units in (even, uneven)]
    widths = [(got.high - got.low) / 2 for got in left_out]
    errors = [
        stats.jackknife_error(values @ units.weights((1 - np.eye(7)) / 6).T) for units in (even, uneven)
    ]
    for units, width, error in zip((even, uneven), widths, errors, strict=True):
        np.testing.assert_allclose(width, scipy.stats.t.ppf(0.975, max(units.effective - 1, 1)) * error)


def test_intervals_cover_where_one_person_has_half_of_the_images():
    rng, covered = np.random.default_rng(3), {"count": [], "kish": []}
    units = stats.Units(np.repeat(np.arange(40), [39] + [1] * 39), 40, True)
    for repeat in range(40):
        values = np.exp(
            0.5 * (0.8 * rng.normal(size=(30, 40))[:, units.member] + 0.6 * rng.normal(size=(30, 78)))
        )
        for name, n in (("count", 40), ("kish", None)):
            got = stats.bootstrap_units(
                lambda w, v=values: v @ w.T, units, repeats=400, seed=repeat, effective=n
            )
            truth = np.exp(0.125)
            covered[name].append((got.low <= truth) & (truth <= got.high))
    assert np.mean(covered["count"]) < 0.9 < 0.93 < np.mean(covered["kish"])


@pytest.mark.parametrize("people", [False, True])
def test_intervals_of_quantiles_are_order_statistics_of_as_many_images_as_count(people):
    rng, quantiles, images = np.random.default_rng(1), (0.05, 0.5, 0.95), 84
    member = np.arange(images) // 12 if people else np.arange(images)
    units = clusters.Units(member, int(member.max()) + 1, people)
    own, shared = rng.normal(size=(300, 1, images)), rng.normal(size=(300, 1, units.count))
    interval = stats.quantile_interval((own + shared[..., member]) / np.sqrt(2), units, quantiles)
    truth = scipy.stats.norm.ppf(quantiles)
    covered = ((interval.low <= truth) & (truth <= interval.high)).mean(axis=0)
    assert (covered > 0.92).all()
    if not people:  # exact (binomial), and no wider than that takes
        assert (covered < 0.99).all()
        of_places = stats.quantile_interval(np.arange(float(images))[None], units, quantiles)
        for end, count in (
            (of_places.low, lambda q: scipy.stats.binom.ppf(0.025, images, q) - 1),
            (of_places.high, lambda q: scipy.stats.binom.ppf(0.975, images, q)),
        ):
            np.testing.assert_array_equal(end, [count(q) for q in quantiles])


@pytest.mark.parametrize("share, within", [(0.05, 0.6), (0.5, 0.6), (0.5, 0.02), (1.0, 0.02)])
def test_the_interval_of_a_share_covers_for_people(share, within):
    """A bootstrap over people has no width where all images that were seen have the property."""
    rng = np.random.default_rng(0)
    units = clusters.Units(np.repeat(np.arange(7), 4), 7, True)
    odds = 1 / within - 1  # of beta distributions, whose images of one person correlate by `within`
    chance = rng.beta(share * odds, (1 - share) * odds, (500, 7)) if share < 1 else np.ones((500, 7))
    having = rng.random((500, 1, 28)) < chance[:, None, units.member]
    interval = stats.share_interval(having, units)
    assert ((interval.low <= share) & (share <= interval.high)).mean() > 0.93
    assert (interval.low < interval.high).all() and (interval.low >= 0).all() and (interval.high <= 1).all()
    images = stats.share_interval(having, clusters.Units(np.arange(28), 28, False))
    assert (interval.high - interval.low >= images.high - images.low - 1e-9).all()
