import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from refit.errors import DataError
from refit.promotion.decision import Decision, decide, find_collapse, measure_lead
from refit.settings import PromotionSettings
from refit.training.objective import RowScores, Scores, score_majority, score_probabilities

CHANCE = 0.05


def as_rows(scores: Scores) -> RowScores:
    """Scores of accuracy, or others whose rows are right where they are above the log of a half."""
    is_share = set(np.unique(scores)) <= {0.0, 1.0}
    return RowScores(np.asarray(scores, float), np.asarray(scores) > (0.5 if is_share else math.log(0.5)))


def judge(
    candidate: Scores,
    champion: Scores | None,
    classes=None,
    majority: Scores | None = None,
    clusters=None,
    slices=None,
    costs=None,
    **settings,
) -> Decision:
    """Compare; the majority class scores lower than any candidate, unless it is given."""
    return decide(
        ["a"] * len(candidate) if classes is None else classes,
        as_rows(candidate),
        None if champion is None else as_rows(champion),
        np.full(len(candidate), min(-4.0, *candidate, 0) if settings.get("score") else 0.0) if majority is None else majority,
        PromotionSettings.model_validate(settings),
        clusters=clusters,
        slices=slices,
        **(costs or {}),
    )


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
    candidate, champion = (np.clip(-np.logaddexp(0, -logits), -3.5, None) for logits in noisy)
    return candidate + gain, champion


def test_where_few_rows_differ_the_exact_sign_test_decides():
    for wins in range(13):
        for losses in range(7):
            expected = wins + losses > 0 and stats.binomtest(wins, wins + losses, alternative="greater").pvalue <= CHANCE
            assert judge(*make_scores(200, wins, losses)).is_better == expected, (wins, losses)


@pytest.mark.parametrize("score", ["accuracy", "log_likelihood", "brier"])
@pytest.mark.parametrize("num_rows", [1, 2, 10, 5000])
def test_a_tie_is_no_better(score, num_rows):
    scores = np.zeros(num_rows) if score == "accuracy" else np.linspace(-1, 0, num_rows)
    decision = judge(scores, scores, score=score)
    assert not decision.is_better
    assert decision.difference == 0
    assert ", no better" in decision.reason
    assert decision.worse == []


def test_the_least_effect_is_held_against_what_is_sure():
    scores = make_scores(1000, wins=50, losses=20)
    bound = judge(*scores).bound
    assert 0.01 < bound < 0.03
    assert judge(*scores, min_effect=bound).is_better
    decision = judge(*scores, min_effect=bound + 0.001)
    assert not decision.is_better
    assert decision.reason.endswith(f"(95 % sure of at least {bound:.4f}), less than the {bound + 0.001:.4f} asked for")


def test_a_small_gain_on_every_row_proves_nothing_while_a_rare_large_loss_may_not_have_been_seen():
    champion = np.full(50, -0.5)
    decision = judge(champion + 0.1, champion, score="log_likelihood")
    unseen = 1 - CHANCE ** (1 / 50)
    assert decision.bound == pytest.approx(0.1 - unseen * (0.1 + math.log(100)), abs=1e-4)
    assert not decision.is_better


def test_a_higher_confidence_lowers_the_bound():
    for score, scores in {"accuracy": make_scores(500, 40, 20), "log_likelihood": make_log_likelihoods(500, 0)}.items():
        bounds = [judge(*scores, score=score, confidence=confidence).bound for confidence in (0.6, 0.9, 0.99, 0.9999)]
        assert bounds == sorted(bounds, reverse=True)
        assert len(set(bounds)) == 4


def test_by_the_rule_not_worse_a_candidate_may_be_worse_by_the_margin():
    scores = make_scores(5000, wins=50, losses=51)
    bound = judge(*scores).bound
    assert bound < 0
    decision = judge(*scores, rule="not_worse", margin=-bound + 1e-6)
    assert decision.is_better
    assert decision.reason.endswith(f"at least {bound:.4f}), surely not worse by more than the {-bound:.4f} allowed")
    assert not judge(*scores, rule="not_worse", margin=-bound).is_better
    assert judge(*scores, rule="not_worse", margin=0.0).reason.endswith("may be worse by more than the 0.0000 allowed")
    decision = judge(*scores, rule="not_worse", margin=-bound - 1e-6)
    assert not decision.is_better
    assert decision.reason.endswith(f"and may be worse by more than the {-bound:.4f} allowed")


def test_a_candidate_that_beats_a_bad_champion_must_beat_the_majority_class_too():
    candidate, champion = make_scores(200, wins=60, losses=0)
    candidate[60:180] = champion[60:180] = 0
    majority = np.tile([1.0, 0.0], 100)
    decision = judge(candidate, champion, majority=majority)
    assert (decision.candidate, decision.champion, decision.majority) == (0.4, 0.1, 0.5)
    assert decision.bound > 0
    assert not decision.is_better
    assert decision.reason.endswith("; it does not beat the majority class (0.5000)")
    decision = judge(candidate, champion, majority=np.arange(200) % 8 < 3)
    assert not decision.is_better
    assert decision.reason.endswith("; it does not beat the majority class by more than noise (0.3750)")


@pytest.mark.parametrize("champion", [None, np.zeros(100)])
def test_a_candidate_must_have_the_least_score(champion):
    candidate = np.repeat([1.0, 0.0], [80, 20])
    assert judge(candidate, champion, min_score=0.8).is_better
    decision = judge(candidate, champion, min_score=0.81)
    assert not decision.is_better
    assert decision.reason.endswith("; its score is less than the promotion.min_score of 0.81")


def test_rows_that_depend_on_one_another_count_as_one():
    """Forty rows in ten copies each: 25 wins and 15 losses are no proof, though 250 and 150 would be one."""
    candidate, champion = (np.repeat(scores, 10) for scores in make_scores(40, wins=25, losses=15))
    decision = judge(candidate, champion)
    assert decision.is_better
    assert decision.num_clusters is None
    decision = judge(candidate, champion, clusters=np.repeat(np.arange(40), 10))
    assert not decision.is_better
    assert decision.num_clusters == 40
    assert "on 400 rows in 40 groups, better by 0.2500, which noise can explain" in decision.reason


def make_classes(num_losses: int, num_rows: int) -> tuple[Scores, Scores, list[str]]:
    """A candidate that wins 100 rows of class a, and loses `num_losses` of the `num_rows` of class b."""
    candidate, champion = make_scores(1000 + num_rows, wins=100, losses=0)
    candidate[1000 : 1000 + num_losses] = 0
    return candidate, champion, ["a"] * 1000 + ["b"] * num_rows


@pytest.mark.parametrize(("num_losses", "num_rows", "is_refused"), [(0, 200, False), (10, 200, False), (11, 200, True)])
def test_a_class_may_drop_by_just_what_is_allowed(num_losses, num_rows, is_refused):
    decision = judge(*make_classes(num_losses, num_rows))
    assert decision.is_better == (not is_refused)
    expected = [("class b", num_rows, 1 - num_losses / num_rows, 1.0, is_refused)] if num_losses else []
    assert [tuple(dict(entry).values()) for entry in decision.worse] == expected


def test_a_drop_that_noise_explains_does_not_count_but_is_listed():
    decision = judge(*make_classes(num_losses=4, num_rows=10))
    assert decision.is_better
    assert [(entry.name, entry.candidate, entry.is_refused) for entry in decision.worse] == [("class b", 0.6, False)]
    assert decision.not_judged == []


def test_named_slices_count_as_classes_do_and_the_worst_that_is_refused_comes_first():
    candidate, champion, classes = make_classes(num_losses=60, num_rows=200)
    is_new = np.zeros(1200, bool)
    is_new[1000:1050] = True
    is_few = np.zeros(1200, bool)
    is_few[1000:1002] = True
    slices = {"age = new": is_new, "age = few": is_few, "age = old": ~is_new, "age = none": np.zeros(1200, bool)}
    decision = judge(candidate, champion, classes=classes, slices=slices)
    assert [(entry.name, entry.num_rows, entry.is_refused) for entry in decision.worse] == [
        ("age = new", 50, True),
        ("class b", 200, True),
        ("age = few", 2, False),
    ]
    assert decision.not_judged == ["age = few", "age = none"]
    assert decision.reason == (
        "not promoted: accuracy 0.9500 against 0.9167 on 1,200 rows, better by 0.0333 (95 % sure of at least 0.0153);"
        " the share of right rows in 'age = new' drops from 1.0000 to 0.0000 on 50 rows, and 1 more"
    )


@pytest.mark.parametrize("num_empty", [0, 200])
def test_slices_too_small_to_show_a_drop_do_not_make_the_others_less_strict(num_empty):
    """Seven losses of eight rows: shown at 0.05 shared among 2, not among 202."""
    candidate, champion = make_scores(1000, wins=100, losses=0)
    candidate[-8:] = 0
    is_last = np.arange(1000) >= 992
    empty = {f"few = {index}": np.arange(1000) == 500 for index in range(num_empty)}
    decision = judge(candidate, champion, slices={"shop = last": is_last, **empty})
    assert [entry.name for entry in decision.worse if entry.is_refused] == ["shop = last"]
    assert len(decision.not_judged) == num_empty


def test_a_class_is_judged_by_its_share_of_right_rows_whatever_the_score():
    """A calibrated candidate gives the rare class less than an overconfident champion did; that is no drop."""
    classes = np.repeat(["common", "rare"], [900, 100])
    champion = np.where(classes == "rare", math.log(0.45), math.log(0.55))
    candidate = np.where(classes == "rare", math.log(0.1), math.log(0.9))
    decision = judge(candidate, champion, classes=classes, score="log_likelihood")
    assert decision.is_better
    assert decision.worse == []


def test_dependent_rows_show_no_drop_of_a_class_either():
    candidate, champion, classes = make_classes(num_losses=40, num_rows=200)
    assert judge(candidate, champion, classes=classes).worse[0].is_refused
    clusters = np.append(np.arange(1000), np.full(200, 1000))
    decision = judge(candidate, champion, classes=classes, clusters=clusters)
    assert not decision.worse[0].is_refused
    assert decision.not_judged == ["class b"]


def test_of_many_classes_that_are_alike_noise_refuses_none():
    generator, num_refused = np.random.default_rng(0), 0
    classes = np.repeat([f"{index}" for index in range(100)], 20)
    for _ in range(100):
        candidate, champion = ((generator.random(2000) < 0.7).astype(float) for _ in range(2))
        num_refused += any(entry.is_refused for entry in judge(candidate, champion, classes=classes.tolist()).worse)
    assert num_refused <= stats.binom.ppf(0.999, 100, CHANCE)


@pytest.mark.parametrize(
    ("costs", "limits", "reason"),
    [
        ({"latency_ms": 12.31}, {"max_latency_ms": 10.0}, "a row takes 12.31 ms, more than the 10 ms allowed"),
        ({"size_mb": 120.0}, {"max_size_mb": 99.5}, "the weights take 120 MB, more than the 99.5 MB allowed"),
    ],
)
def test_what_costs_too_much_is_not_promoted(costs, limits, reason):
    decision = judge(*make_scores(100, wins=20, losses=0), costs=costs, **limits)
    assert not decision.is_better
    assert decision.reason.endswith(f"(95 % sure of at least 0.1400); {reason}")


def test_a_cost_of_just_the_limit_is_allowed():
    costs = {"latency_ms": 10.0, "size_mb": 5.0}
    assert judge(*make_scores(100, wins=20, losses=0), costs=costs, max_latency_ms=10.0, max_size_mb=5.0).is_better


@pytest.mark.parametrize(
    ("scores", "settings", "reason"),
    [
        (
            make_scores(1200, wins=50, losses=20),
            {},
            "promoted: accuracy 0.9833 against 0.9583 on 1,200 rows, better by 0.0250 (95 % sure of at least 0.0131)",
        ),
        (
            make_scores(1200, wins=20, losses=18),
            {},
            "not promoted: accuracy 0.9850 against 0.9833 on 1,200 rows, better by 0.0017, which noise can explain"
            " (95 % sure of at least -0.0075)",
        ),
        (make_scores(1200, wins=18, losses=30), {}, "not promoted: accuracy 0.9750 against 0.9850 on 1,200 rows, worse by 0.0100"),
        (make_scores(29, wins=0, losses=0), {}, "not promoted: on only 29 rows: accuracy 1.0000 against 1.0000, no better"),
        (make_scores(30, wins=0, losses=0), {}, "not promoted: accuracy 1.0000 against 1.0000 on 30 rows, no better"),
        (
            make_scores(10**6, wins=120, losses=20),
            {},
            "promoted: accuracy 1.0000 against 0.9999 on 1,000,000 rows, better by 0.0001 (95 % sure of at least 8.1e-05)",
        ),
    ],
)
def test_the_reason_is_a_sentence_with_its_figures(scores, settings, reason):
    assert judge(*scores, **settings).reason == reason


def test_all_that_speaks_against_a_candidate_is_named():
    candidate, champion, classes = make_classes(num_losses=200, num_rows=200)
    costs, limits = {"latency_ms": 5.0, "size_mb": 9.0}, {"max_latency_ms": 1.0, "max_size_mb": 1.0}
    decision = judge(candidate, champion, classes=classes, costs=costs, min_score=0.9, **limits)
    assert decision.reason == (
        "not promoted: accuracy 0.8333 against 0.9167 on 1,200 rows, worse by 0.0833;"
        " its score is less than the promotion.min_score of 0.9;"
        " the share of right rows in 'class b' drops from 1.0000 to 0.0000 on 200 rows;"
        " a row takes 5 ms, more than the 1 ms allowed; the weights take 9 MB, more than the 1 MB allowed"
    )


def test_a_first_candidate_must_beat_the_majority_class_which_is_always_right_on_its_own_rows():
    classes = ["a"] * 70 + ["b"] * 30
    majority = score_majority(classes, {"a": 700, "b": 300}, "accuracy")
    candidate = np.array([1.0] * 60 + [0.0] * 10 + [1.0] * 30)
    decision = judge(candidate, None, classes=classes, majority=majority)
    assert decision.is_better
    assert decision.reason.startswith(
        "promoted: accuracy 0.9000 against 0.7000 of the majority class on 100 rows, better by 0.2000"
    )
    assert (decision.worse, decision.lead) == ([], decision.bound)
    assert not judge(majority, None, classes=classes, majority=majority).is_better


PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.005, 0.9, 0.095], [0.3, 0.3, 0.4]])


def test_a_row_scores_by_the_probabilities_of_its_classes():
    y = np.array([0, 0, 2])
    scored = score_probabilities(PROBABILITIES, y, "accuracy")
    assert scored.scores.tolist() == [1.0, 0.0, 1.0]
    assert scored.is_right.tolist() == [True, False, True]
    floored = score_probabilities(PROBABILITIES, y, "log_likelihood").scores
    np.testing.assert_allclose(floored, np.log([0.7, 0.01, 0.4]), rtol=1e-12)
    truth = np.eye(3)[y]
    expected = 1 - ((PROBABILITIES - truth) ** 2).sum(axis=1) / 2
    np.testing.assert_allclose(score_probabilities(PROBABILITIES, y, "brier").scores, expected, rtol=1e-12)


def test_the_majority_class_is_the_largest_of_the_train_rows():
    assert score_majority(["a", "b", "c"], {"a": 2, "b": 5}, "accuracy").tolist() == [0.0, 1.0, 0.0]
    expected = np.log([3 / 10, 6 / 10, 1 / 10])
    np.testing.assert_allclose(score_majority(["a", "b", "c"], {"a": 2, "b": 5}, "log_likelihood"), expected)
    np.testing.assert_allclose(score_majority(["a", "b"], {"a": 2, "b": 5}, "brier"), [1 - (2 / 3) ** 2, 1 - (1 / 3) ** 2])
    assert score_majority(["a", "b", "b", "b"], {"a": 2, "b": 5}, "average_precision").mean() == pytest.approx(0.25)
    assert score_majority(["a", "b", "b", "b"], {"a": 2, "b": 5}, "balanced_accuracy").mean() == pytest.approx(0.5)


def draw_right(share: float, num_rows: int, seed: int = 0) -> Scores:
    return (np.random.default_rng(seed).permutation(num_rows) < share * num_rows).astype(float)


@pytest.mark.parametrize(
    ("right", "lead", "has_collapsed"),
    [
        (0.47, 0.3, True),  # no better than the majority class, where it was far ahead
        (0.23, None, True),  # below the majority class, whatever it was
        (0.47, None, False),  # not below it by more than noise
        (0.80, 0.3, False),  # nearly as far ahead as it was
        (0.60, 0.3, False),  # less than half of its lead, but not by more than noise
    ],
)
def test_a_champion_has_collapsed_that_is_below_the_majority_class_or_has_lost_half_of_its_lead(right, lead, has_collapsed):
    majority = np.tile([0.0, 1.0], 75)
    found = find_collapse(as_rows(draw_right(right, 150)), majority, PromotionSettings(), lead_before=lead)
    assert (found is not None) == has_collapsed
    if has_collapsed:
        share = draw_right(right, 150).mean()
        assert found.startswith(f"accuracy {share:.4f} on 150 rows, where the majority class has 0.5000")
        assert found.endswith("; it was ahead by at least 0.3000 when it was promoted") == (lead is not None)


@pytest.mark.parametrize(("min_score", "has_collapsed"), [(0.8, False), (0.95, True)])
def test_a_champion_has_collapsed_that_is_below_the_least_score_by_more_than_noise(min_score, has_collapsed):
    found = find_collapse(as_rows(draw_right(0.78, 150)), np.zeros(150), PromotionSettings(min_score=min_score))
    assert (found is not None) == has_collapsed
    if has_collapsed:
        assert found == "accuracy 0.7800 on 150 rows, less than the promotion.min_score of 0.95"


def test_the_same_scores_give_the_same_decision_and_draw_nothing_from_the_global_generator():
    state = np.random.get_state()[1].tolist()
    for score, scores in {"accuracy": make_scores(500, 40, 20), "log_likelihood": make_log_likelihoods(500, 0)}.items():
        first, second = (judge(*scores, score=score) for _ in range(2))
        assert first == second
    assert np.random.get_state()[1].tolist() == state


def test_a_decision_is_json_and_comes_back():
    for scores in (make_scores(50, 2, 1), make_scores(1, 1, 0)):
        decision = judge(*scores, classes=(["a", "b"] * 25)[: len(scores[0])])
        assert Decision.model_validate_json(decision.model_dump_json()) == decision


def test_classes_may_be_a_list_or_an_array_or_come_from_polars():
    candidate, champion, classes = make_classes(num_losses=60, num_rows=200)
    expected = judge(candidate, champion, classes=classes)
    for given in (np.array(classes), pl.Series(classes).to_numpy()):
        assert judge(candidate, champion, classes=given) == expected


def test_a_decision_to_promote_that_is_refused_keeps_its_figures():
    decision = judge(*make_scores(100, wins=20, losses=0))
    refused = decision.refuse()
    assert (decision.is_better, refused.is_better) == (True, False)
    assert refused.reason == f"not {decision.reason}"
    assert refused.bound == decision.bound


def test_no_rows_are_refused():
    with pytest.raises(DataError, match=r"expected test rows to compare models on, found none; raise data\.test"):
        judge(np.array([]), np.array([]), majority=np.array([]))


@pytest.mark.parametrize(
    ("right", "majority", "warning"),
    [
        (80, 50, None),
        (
            53,
            50,
            "the model does not beat the majority class by more than noise: accuracy 0.5300 on 100 test rows, where the majority"
            " class has 0.5000",
        ),
        (
            50,
            50,
            "the model does not beat the majority class: accuracy 0.5000 on 100 test rows, where the majority class has 0.5000",
        ),
    ],
)
def test_a_model_that_does_not_beat_the_majority_class_is_warned_of_as_a_decision_would_object(right, majority, warning):
    model, rival = (np.arange(100) < right).astype(float), (np.arange(100)[::-1] < majority).astype(float)
    lead = measure_lead(as_rows(model), rival, PromotionSettings(), "test")
    assert lead.warn() == warning
    decision = judge(model, np.zeros(100), majority=rival)
    assert (lead.bound, lead.majority, lead.warn()) == (decision.lead, decision.majority, decision.warn())
    assert ("does not beat the majority class" in decision.reason) == (warning is not None)


def test_a_warning_says_that_rows_are_few():
    warning = measure_lead(as_rows(np.ones(2)), np.array([1.0, 0.0]), PromotionSettings(), "val").warn()
    assert "by more than noise: accuracy 1.0000 on only 2 val rows, where" in warning
