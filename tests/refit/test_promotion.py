import numpy as np
import polars as pl
import pytest
from scipy import stats

from refit import promotion
from refit.errors import DataError
from refit.promotion import Decision, Labels, Score, Scores, decide, score_majority

CHANCE = 0.05
LIMITS = {"confidence": 1 - CHANCE, "min_effect": 0.0, "max_drop": 0.05, "latency_ms": 1.0, "size_mb": 1.0}
OPTIONS = {"confidence_level": 1 - CHANCE, "n_resamples": 4999, "vectorized": True}


def compare(candidate: Scores, champion: Scores, score: Score = "accuracy", classes: Labels | None = None, **changes) -> Decision:
    given = {**LIMITS, **changes}
    return decide(["a"] * len(candidate) if classes is None else classes, candidate, champion, score=score, **given)


def make_scores(num_rows: int, wins: int, losses: int) -> tuple[Scores, Scores]:
    """0/1 scores of a candidate and a champion: the candidate alone is right on `wins` rows, the champion alone on `losses`."""
    candidate, champion = np.ones(num_rows), np.ones(num_rows)
    champion[:wins] = 0
    candidate[wins : wins + losses] = 0
    return candidate, champion


def make_log_likelihoods(num_rows: int, seed: int, gain: float = 0.0) -> tuple[Scores, Scores]:
    """Log probabilities of two models that err in ways of their own, the candidate's higher by `gain` a row."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(0, 2, num_rows)
    signs = np.where(generator.random(num_rows) < 1 / (1 + np.exp(-truth)), 1, -1)
    noisy = [signs * (truth + generator.normal(0, 0.7, num_rows)) for _ in range(2)]
    candidate, champion = (-np.logaddexp(0, -logits) for logits in noisy)
    return candidate + gain, champion


def test_where_few_rows_differ_the_exact_sign_test_decides():
    for wins in range(13):
        for losses in range(7):
            expected = wins + losses > 0 and stats.binomtest(wins, wins + losses, alternative="greater").pvalue <= CHANCE
            assert compare(*make_scores(200, wins, losses)).is_better == expected, (wins, losses)


@pytest.mark.parametrize(("num_rows", "wins", "losses"), [(20, 9, 1), (50, 30, 12), (1000, 300, 0), (1000, 200, 160)])
def test_the_bound_of_0_and_1_is_the_lower_of_the_exact_and_the_bootstraps(num_rows, wins, losses):
    scores = make_scores(num_rows, wins, losses)
    share = stats.binomtest(wins, wins + losses, alternative="greater").proportion_ci(1 - CHANCE).low
    exact = (2 * share - 1) * (wins + losses) / num_rows
    resampled = stats.bootstrap((np.subtract(*scores),), np.mean, alternative="greater", method="percentile", rng=1, **OPTIONS)
    expected = min(exact, resampled.confidence_interval.low)
    assert compare(*scores).bound == pytest.approx(expected, abs=1 / num_rows + 0.05 * resampled.standard_error)


def test_the_bound_of_many_rows_is_that_of_the_normal_distribution():
    error = np.sqrt(179_000 - 1000**2 / 10**6) / 10**6
    decision = compare(*make_scores(10**6, wins=90_000, losses=89_000))
    assert decision.difference == pytest.approx(0.001)
    assert decision.bound == pytest.approx(0.001 + stats.norm.ppf(CHANCE) * error, abs=0.05 * error)


@pytest.mark.parametrize("num_rows", [12, 16])
def test_the_bound_of_symmetric_differences_is_students(num_rows):
    differences = np.linspace(-1.0, 1.6, num_rows) / 10
    decision = compare(differences - 1, np.full(num_rows, -1.0), "log_likelihood")
    student = stats.ttest_1samp(differences, 0, alternative="greater").confidence_interval(1 - CHANCE).low
    assert decision.bound == pytest.approx(student, abs=1e-4)


@pytest.mark.parametrize("direction", [1, -1])
def test_the_bound_of_skewed_differences_is_second_order_correct(direction):
    """As the bias-corrected and accelerated one is, another method for the same."""
    differences = direction * (np.random.default_rng(3).exponential(1.0, 300) - 1)
    decision = compare(differences - 9, np.full(300, -9.0), "log_likelihood")
    oracle = stats.bootstrap((differences,), np.mean, alternative="greater", method="BCa", rng=1, **OPTIONS)
    student = stats.ttest_1samp(differences, 0, alternative="greater").confidence_interval(1 - CHANCE).low
    expected = min(oracle.confidence_interval.low, student)
    assert decision.bound == pytest.approx(expected, abs=0.1 * oracle.standard_error)


@pytest.mark.parametrize("seed", range(2))
def test_what_stands_in_for_resampling_many_rows_agrees_with_it(monkeypatch, seed):
    candidate, champion = make_log_likelihoods(2000, seed)
    candidate -= np.random.default_rng(seed).exponential(0.5, 2000) ** 2
    bounds = []
    for num_rows in (2000, 1999):
        monkeypatch.setattr(promotion, "MAX_ROWS_RESAMPLED", num_rows)
        bounds.append(compare(candidate, champion, "log_likelihood").bound)
    error = (candidate - champion).std() / np.sqrt(2000)
    assert bounds[0] != bounds[1]
    assert bounds[0] == pytest.approx(bounds[1], abs=0.05 * error)


def test_noise_is_promoted_no_more_often_than_stated():
    """Where six rows differ the percentile bootstrap alone promotes one in nine; of correct gates one in 1,000 would fail here."""
    wins = np.random.default_rng(0).binomial(6, 0.5, 500)
    num_promoted = sum(compare(*make_scores(100, count, 6 - count)).is_better for count in wins)
    assert 0 < num_promoted <= stats.binom.ppf(0.999, 500, CHANCE)
    num_promoted = sum(compare(*make_log_likelihoods(20, seed), "log_likelihood").is_better for seed in range(150))
    assert 0 < num_promoted <= stats.binom.ppf(0.999, 150, CHANCE)


@pytest.mark.parametrize("num_rows", range(1, 11))
def test_few_rows_promote_only_what_a_fair_coin_could_not_do(num_rows):
    is_sure = 0.5**num_rows <= CHANCE
    assert compare(np.ones(num_rows), np.zeros(num_rows)).is_better == is_sure
    decision = compare(np.full(num_rows, -0.1), np.linspace(-0.5, -0.4, num_rows), "log_likelihood")
    assert decision.is_better == is_sure
    assert (decision.bound is None) == (not is_sure)


@pytest.mark.parametrize("score", ["accuracy", "log_likelihood"])
@pytest.mark.parametrize("num_rows", [1, 2, 10, 5000])
def test_a_tie_is_no_better(score, num_rows):
    scores = np.zeros(num_rows) if score == "accuracy" else np.linspace(-1, 0, num_rows)
    decision = compare(scores, scores, score)
    assert not decision.is_better
    assert decision.difference == 0
    assert decision.reason.endswith("no better")
    assert decision.worse == []


@pytest.mark.parametrize("num_rows", [50, 3000])
def test_the_same_gain_on_every_row_is_sure(num_rows):
    decision = compare(np.full(num_rows, -0.5), np.full(num_rows, -1.0), "log_likelihood")
    assert decision.is_better
    assert decision.bound == 0.5


def test_a_gain_of_just_the_least_effect_counts():
    scores = make_scores(1000, wins=50, losses=20)
    assert compare(*scores, min_effect=0.03).is_better
    decision = compare(*scores, min_effect=0.0301)
    assert not decision.is_better
    assert decision.reason.endswith("better by 0.0300 (95 % sure of at least 0.0157), less than the 0.0301 asked for")


def test_a_higher_confidence_lowers_the_bound():
    bounds = [
        compare(*scores, score, confidence=confidence).bound
        for score, scores in {"accuracy": make_scores(500, 40, 20), "log_likelihood": make_log_likelihoods(500, 0)}.items()
        for confidence in (0.6, 0.9, 0.99, 0.9999)
    ]
    assert bounds[:4] == sorted(bounds[:4], reverse=True)
    assert bounds[4:] == sorted(bounds[4:], reverse=True)


def make_classes(num_losses: int, num_rows: int) -> tuple[Scores, Scores, list[str]]:
    """A candidate that wins 100 rows of class a, and loses `num_losses` of the `num_rows` of class b."""
    candidate, champion = make_scores(1000 + num_rows, wins=100, losses=0)
    candidate[1000 : 1000 + num_losses] = 0
    return candidate, champion, ["a"] * 1000 + ["b"] * num_rows


@pytest.mark.parametrize(("num_losses", "num_rows", "is_refused"), [(0, 200, False), (10, 200, False), (11, 200, True)])
def test_a_class_may_drop_by_just_what_is_allowed(num_losses, num_rows, is_refused):
    candidate, champion, classes = make_classes(num_losses, num_rows)
    decision = compare(candidate, champion, classes=classes)
    assert decision.is_better == (not is_refused)
    expected = [("class b", num_rows, 1 - num_losses / num_rows, 1.0, is_refused)] if num_losses else []
    assert [tuple(dict(entry).values()) for entry in decision.worse] == expected


def test_a_drop_that_noise_explains_does_not_count_but_is_listed():
    candidate, champion, classes = make_classes(num_losses=4, num_rows=10)
    decision = compare(candidate, champion, classes=classes)
    assert decision.is_better
    assert [(entry.name, entry.candidate, entry.is_refused) for entry in decision.worse] == [("class b", 0.6, False)]


def test_named_slices_count_as_classes_do_and_the_worst_that_is_refused_comes_first():
    candidate, champion, classes = make_classes(num_losses=60, num_rows=200)
    is_new = np.zeros(1200, bool)
    is_new[1000:1050] = True
    is_few = np.zeros(1200, bool)
    is_few[1000:1002] = True
    slices = {"age = new": is_new, "age = few": is_few, "age = old": ~is_new, "age = none": np.zeros(1200, bool)}
    decision = compare(candidate, champion, classes=classes, slices=slices)
    assert [(entry.name, entry.num_rows, entry.is_refused) for entry in decision.worse] == [
        ("age = new", 50, True),
        ("class b", 200, True),
        ("age = few", 2, False),
    ]
    assert decision.reason == (
        "not promoted: accuracy 0.9500 against 0.9167 on 1,200 rows, better by 0.0333 (95 % sure of at least 0.0153);"
        " 'age = new' drops from 1.0000 to 0.0000 on 50 rows, and 1 more"
    )


def test_a_class_drops_in_log_likelihood_too():
    candidate, champion = make_log_likelihoods(1000, seed=0, gain=0.2)
    candidate[900:] -= 0.5
    decision = compare(candidate, champion, "log_likelihood", classes=["a"] * 900 + ["b"] * 100)
    assert [(entry.name, entry.is_refused) for entry in decision.worse] == [("class b", True)]
    assert decision.bound > 0
    assert not decision.is_better


def test_of_many_classes_that_are_alike_noise_refuses_none():
    generator, num_refused = np.random.default_rng(0), 0
    classes = np.repeat([f"{index}" for index in range(100)], 20)
    for _ in range(10):
        candidate, champion = ((generator.random(2000) < 0.7).astype(float) for _ in range(2))
        num_refused += any(entry.is_refused for entry in compare(candidate, champion, classes=classes.tolist()).worse)
    assert num_refused <= stats.binom.ppf(0.999, 10, CHANCE)


@pytest.mark.parametrize(
    ("costs", "reason"),
    [
        ({"latency_ms": 12.31, "max_latency_ms": 10.0}, "a row takes 12.31 ms, more than the 10 ms allowed"),
        ({"size_mb": 120.0, "max_size_mb": 99.5}, "the weights take 120 MB, more than the 99.5 MB allowed"),
    ],
)
def test_what_costs_too_much_is_not_promoted(costs, reason):
    decision = compare(*make_scores(100, wins=20, losses=0), **costs)
    assert not decision.is_better
    assert decision.reason.endswith(f"(95 % sure of at least 0.1400); {reason}")


def test_a_cost_of_just_the_limit_is_allowed():
    scores = make_scores(100, wins=20, losses=0)
    assert compare(*scores, latency_ms=10.0, max_latency_ms=10.0, size_mb=5.0, max_size_mb=5.0).is_better


@pytest.mark.parametrize(
    ("scores", "score", "reason"),
    [
        (
            make_scores(1200, wins=50, losses=20),
            "accuracy",
            "promoted: accuracy 0.9833 against 0.9583 on 1,200 rows, better by 0.0250 (95 % sure of at least 0.0131)",
        ),
        (
            make_scores(1200, wins=20, losses=18),
            "accuracy",
            "not promoted: accuracy 0.9850 against 0.9833 on 1,200 rows, better by 0.0017, which noise can explain"
            " (95 % sure of at least -0.0075)",
        ),
        (
            make_scores(1200, wins=18, losses=30),
            "accuracy",
            "not promoted: accuracy 0.9750 against 0.9850 on 1,200 rows, worse by 0.0100",
        ),
        (make_scores(1, wins=0, losses=0), "accuracy", "not promoted: accuracy 1.0000 against 1.0000 on 1 row, no better"),
        (
            make_scores(10**6, wins=120, losses=20),
            "accuracy",
            "promoted: accuracy 1.0000 against 0.9999 on 1,000,000 rows, better by 0.0001 (95 % sure of at least 8.1e-05)",
        ),
        (
            (np.array([-0.2, -0.3]), np.array([-0.4, -0.6])),
            "log_likelihood",
            "not promoted: log likelihood -0.2500 against -0.5000 on 2 rows, better by 0.2500, which so few rows cannot prove",
        ),
    ],
)
def test_the_reason_is_a_sentence_with_its_figures(scores, score, reason):
    assert compare(*scores, score).reason == reason


def test_all_that_speaks_against_a_candidate_is_named():
    candidate, champion, classes = make_classes(num_losses=200, num_rows=200)
    decision = compare(candidate, champion, classes=classes, latency_ms=5.0, max_latency_ms=1.0, size_mb=9.0, max_size_mb=1.0)
    assert decision.reason == (
        "not promoted: accuracy 0.8333 against 0.9167 on 1,200 rows, worse by 0.0833;"
        " 'class b' drops from 1.0000 to 0.0000 on 200 rows; a row takes 5 ms, more than the 1 ms allowed;"
        " the weights take 9 MB, more than the 1 MB allowed"
    )


def test_a_first_candidate_must_beat_the_majority_class_which_is_always_right_on_its_own_rows():
    classes = ["a"] * 70 + ["b"] * 30
    champion = score_majority(classes, {"a": 700, "b": 300}, "accuracy")
    candidate = np.array([1.0] * 60 + [0.0] * 10 + [1.0] * 30)
    decision = compare(candidate, champion, classes=classes, is_first=True)
    assert decision.is_better
    assert decision.reason.startswith(
        "promoted: accuracy 0.9000 against 0.7000 of the majority class on 100 rows, better by 0.2000"
    )
    assert decision.worse == []
    assert not compare(candidate, champion, classes=classes).is_better
    assert not compare(champion, champion, classes=classes, is_first=True).is_better


def test_the_majority_class_is_the_largest_of_the_train_rows():
    assert score_majority(["a", "b", "c"], {"a": 2, "b": 5}, "accuracy").tolist() == [0.0, 1.0, 0.0]
    expected = np.log([3 / 9, 6 / 9, 1 / 9])
    np.testing.assert_allclose(score_majority(["a", "b", "c"], {"a": 2, "b": 5}, "log_likelihood"), expected)


@pytest.mark.parametrize("unusable", [-np.inf, np.nan])
def test_a_row_that_a_model_gives_no_probability_counts_as_very_unlikely(unusable):
    candidate, champion = make_log_likelihoods(100, seed=0)
    champion[:30] = unusable
    decision = compare(candidate, champion, "log_likelihood")
    assert decision.is_better
    assert decision.champion == pytest.approx((champion[30:].sum() + 30 * np.log(1e-15)) / 100)
    assert not compare(champion, candidate, "log_likelihood").is_better


@pytest.mark.parametrize("scores", [make_scores(500, 40, 20), make_log_likelihoods(500, 0)], ids=["0 and 1", "log probabilities"])
def test_the_same_scores_give_the_same_decision_and_draw_nothing_from_the_global_generator(scores):
    state = np.random.get_state()[1].tolist()
    score = "accuracy" if scores[0].max() == 1 else "log_likelihood"
    first, second = (compare(*scores, score) for _ in range(2))
    assert first == second
    assert np.random.get_state()[1].tolist() == state


def test_a_decision_is_json_and_comes_back():
    for scores in (make_scores(50, 2, 1), make_scores(1, 1, 0)):
        decision = compare(*scores, classes=(["a", "b"] * 25)[: len(scores[0])])
        assert Decision.model_validate_json(decision.model_dump_json()) == decision
    decision = compare(np.array([-0.1]), np.array([-0.2]), "log_likelihood")
    assert Decision.model_validate_json(decision.model_dump_json()) == decision


def test_classes_may_be_a_list_or_an_array_or_come_from_polars():
    candidate, champion, classes = make_classes(num_losses=60, num_rows=200)
    expected = compare(candidate, champion, classes=classes)
    for given in (np.array(classes), pl.Series(classes).to_numpy()):
        assert compare(candidate, champion, classes=given) == expected


def test_no_rows_are_refused():
    with pytest.raises(DataError, match=r"expected test rows to compare models on, found none; raise data\.test"):
        compare(np.array([]), np.array([]))
