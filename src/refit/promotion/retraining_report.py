"""The report of a retraining: what was decided and why, with its figures and pictures."""

import base64
import json
from datetime import datetime

from refit.promotion.comparison import Verdict
from refit.refs import SavedModel
from refit.registry.ledger import Entry
from refit.registry.versions import find_version, report_path, version_folder
from refit.reports.figures import Bin
from refit.reports.markdown import render_html
from refit.reports.run_report import DriftRow, EpochRow, RunReport, SliceRow, WorstRow, render_run_report
from refit.store.store import Store


def render_report(
    candidate: SavedModel, verdict: Verdict, headline: str, reason: str, store: Store, context: str | None = None
) -> str:
    """Render the report as Markdown; `context` says when and by whom it was decided."""
    folder = version_folder(candidate.name, candidate.version)
    log, record = (json.loads(store.read(f"{folder}/{name}.json")) for name in ("log", "version"))
    caution, lead = verdict.decision.warn(), record.get("lead") or {}
    report = RunReport(
        headline=headline,
        context=context,
        reason=reason,
        caution="; ".join(filter(None, [caution, lead.get("reason")])) if caution else None,
        scores=verdict.scores,
        num_scored=verdict.decision.num_rows,
        not_judged=verdict.decision.not_judged,
        is_refitted=record.get("refit_on_all", False),
        worse_slices=[SliceRow(part.name, part.num_rows, part.candidate, part.champion) for part in verdict.decision.worse],
        epochs=[EpochRow(**{name: epoch[name] for name in EpochRow.__dataclass_fields__}) for epoch in log],
        best_epoch=record["epoch"],
        confusion=verdict.confusion or None,
        labels=verdict.labels,
        curve=verdict.curve,
        bins=[Bin(**part.model_dump(exclude={"num_rows"})) for part in verdict.bins],
        worst=[
            WorstRow(it.item, it.truth, it.predicted, it.score, "probability of the truth" if verdict.confusion else "score")
            for it in verdict.worst
        ],
        worst_png=base64.b64decode(verdict.worst_picture) or None,
        rows_before=verdict.rows_before,
        rows_now=verdict.rows_now,
        drifts=[
            DriftRow(
                drift.column, drift.psi, drift.noise, drift.extent, drift.missing_before, drift.missing_now, drift.new_categories
            )
            for drift in verdict.drifts
        ],
        versions={name: store.location(find_version(store, name)) for name in verdict.scores if "@" in name},
        earlier_looks=verdict.earlier_looks,
    )
    return render_run_report(report)


def write_report(candidate: SavedModel, verdict: Verdict, entry: Entry, store: Store, run: str | None = None) -> tuple[str, str]:
    """Write the report as one HTML file beside the candidate's folder; `run` is the name of the run that decided.

    Returns:
        The report as Markdown, and the path or URL of the file.
    """
    headline = describe_outcome(candidate.name, entry)
    if verdict.alarm is not None:
        headline += f"; the previous champion was {verdict.alarm}" if entry.action == "promote" else f", but it is {verdict.alarm}"
    context = f"Decided on {datetime.fromisoformat(entry.at):%-d %b %Y at %H:%M %Z} by {entry.who}{f', run {run}' if run else ''}."
    markdown = render_report(candidate, verdict, headline, entry.why, store, context)
    path = report_path(candidate.name, candidate.version)
    store.write(path, render_html(markdown, headline).encode())
    return markdown, store.location(path)


def describe_outcome(name: str, entry: Entry) -> str:
    """Say briefly which version is the champion after a decision."""
    if entry.action == "promote":
        return f"{name}@v{entry.after} is the champion now"
    return f"{name}@v{entry.before} stays the champion" if entry.before else f"{name} has no champion yet"
