"""How far a column has moved between two data sets, in figures and in a word."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

LITTLE_PSI = 0.1
"""Below it a column counts as stable (Siddiqi 2006): a rule of thumb."""
LARGE_PSI = 0.25
"""From it on a column counts as shifted (Siddiqi 2006): a rule of thumb."""

Extent = Literal["stable", "shifted a little", "shifted", "added", "gone", "of another kind"]


class Drift(BaseModel):
    """How far a column has moved between two data sets."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    column: str
    psi: float | None
    """Population stability index; None where only one data set has the column, or where it holds another kind now."""
    noise: float | None
    """The index is no larger than this in 19 of 20 unchanged columns, or more."""
    missing_before: float | None
    """Share of the rows without a value; None where the column was not there."""
    missing_now: float | None
    new_categories: list[str]
    """Categories that the column never held before, most frequent first; none are known where it held too many to list."""

    @property
    def extent(self) -> Extent:
        """The index in a word; a change that chance explains counts as stable."""
        if self.psi is None or self.noise is None:
            if self.missing_before is None:
                return "added"
            return "gone" if self.missing_now is None else "of another kind"
        if self.psi < LITTLE_PSI or self.psi <= self.noise:
            return "stable"
        return "shifted" if self.psi >= LARGE_PSI else "shifted a little"
