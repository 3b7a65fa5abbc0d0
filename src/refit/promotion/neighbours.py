"""Says how a model compares with others on the same rows, and why it may be of little use."""

import math
from collections.abc import Mapping, Sequence

from refit.promotion.decision import FEW_ROWS, Clusters, Lead, measure_lead, round_score
from refit.refs import Handle, Ref
from refit.settings import PromotionSettings, TrainingSettings
from refit.texts import say_score
from refit.training.loop import EpochLog
from refit.training.metrics import Metrics
from refit.training.neighbours import TITLES
from refit.training.objective import RowScores

OURS = "this model"
LARGE_SHARE = 0.9
"""Share of rows of one class from which on accuracy hardly tells a good model from that class."""


class Comparison(Handle):
    """How models did on the rows of one split."""

    split: str
    num_rows: int
    figures: dict[str, dict[str, float | None]]
    """Metrics by model: the majority class or another baseline, a linear model, boosted trees, this model."""
    better: str | None
    """The best of the others, if it is better than this model by more than noise; in a sentence with its figures."""
    outputs: Ref
    """Outputs of the others for these rows, by kind."""

    def describe(self) -> str:
        """List the first metric of each model in one line for people."""
        name = next(name for name in self.figures[OURS] if name != "loss")
        shown = {model: figures.get(name) for model, figures in self.figures.items()}
        listed = ", ".join(f"{model} {round_score(figure)}" for model, figure in shown.items() if figure is not None)
        return f"{name} on the same {self.num_rows:,} {self.split} rows: {listed}"


def find_better(
    others: Mapping[str, RowScores], model: RowScores, settings: PromotionSettings, split: str, clusters: Clusters | None = None
) -> tuple[str, Lead] | None:
    """Find the best of the others if it is better than a model by more than noise, with its lead.

    Args:
        others: Scores of the same rows, by kind.
        model: The model's score of each row.
        settings: Score and confidence.
        split: Where the rows are from.
        clusters: As in `decide`.
    """
    if not others:
        return None
    best = max(others, key=lambda kind: others[kind].scores.mean())
    lead = measure_lead(others[best], model.scores, settings, split, clusters, OURS)
    return (best, lead) if lead.bound > 0 else None


def tell_better(found: tuple[str, Lead] | None, theirs: Metrics | None = None, ours: Metrics | None = None) -> str | None:
    """Say which of the others is better, with its score and the model's, or, for numbers, with the first of their metrics."""
    if found is None:
        return None
    kind, lead = found
    name, values = say_score(lead.score), (lead.model, lead.majority)
    if theirs is not None and ours is not None and lead.score == "negative_loss":
        name = next(iter(ours.figures))
        values = theirs.figures[name] or math.nan, ours.figures[name] or math.nan
    who = f"{TITLES[kind]} are" if kind == "trees" else f"a {TITLES[kind]} is"
    rows = f"{lead.num_rows:,} {lead.split} rows"
    return f"{who} better on this table: {name} {round_score(values[0])} on {rows}, where this model has {round_score(values[1])}"


def find_reason(
    lead: Lead,
    logs: Sequence[EpochLog],
    best_epoch: int,
    training: TrainingSettings,
    counts: Sequence[int],
    others: Mapping[str, Lead],
) -> str | None:
    """Find the likely reason why a model does not beat the majority class, and what to do about it.

    Args:
        lead: Over the majority class.
        logs: Of the epochs.
        best_epoch: The one whose weights are used.
        training: The settings.
        counts: Train rows of each class; empty for other targets.
        others: The leads of other models over the majority class, by kind.
    """
    shares = [count / sum(counts) for count in counts if count]
    smoothing = training.label_smoothing
    learned = [(1 - smoothing) * share + smoothing / len(shares) for share in shares]
    entropy = -sum(share * math.log(share) for share in learned)
    able = [TITLES[kind] for kind, other in others.items() if other.bound > 0]
    can_be_learned = f"though {' and '.join(able)} did: " if able else ""
    if lead.num_rows < FEW_ROWS:
        return None  # the warning says so
    if training.class_weights is not None:
        return "training.class_weights gives up some of it for rare classes; see the balanced accuracy and the average precision"
    if counts and logs[best_epoch - 1].train_loss >= entropy:
        return (
            f"the network has learned nothing, {can_be_learned}its train loss is not below that of the shares of the classes;"
            " try another optimizer.lr"
        )
    if best_epoch == training.num_epochs and not able:
        return "it was still learning in the last epoch; raise training.num_epochs"
    if lead.score == "accuracy" and shares and max(shares) >= LARGE_SHARE:
        share = f"{max(shares):.1%} of the train rows are of one class"
        return f"{share}, so accuracy says little; set promotion.score to `log_likelihood`, or training.class_weights"
    if able:
        return f"{' and '.join(able)} did, so the table can be learned; try another optimizer.lr or model, or more epochs"
    return f"nor did {' or '.join(TITLES[kind] for kind in others)}; the columns may say little about it" if others else None
