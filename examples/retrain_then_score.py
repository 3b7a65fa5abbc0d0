"""Retrain a deployed model, look at what became of it, and score rows anew where the champion is another one.

PREFECT_API_URL=http://127.0.0.1:4200/api python retrain_then_score.py penguins new.csv scores.parquet
"""

import sys

from prefect import flow
from prefect.deployments import run_deployment

from refit.refs import Prediction, RetrainingResult


@flow(log_prints=True)
def retrain_then_score(model: str, source: str, output: str) -> str:
    """Run two deployments, wherever their workers are, and decide by the result of the first about the second."""
    retraining: RetrainingResult = run_deployment(f"retrain/{model}", poll_interval=1).state.result()
    print(f"{retraining.outcome}: {retraining.reason}")
    if retraining.alarm:
        raise RuntimeError(f"a person should look at the champion of {model}, which was {retraining.alarm}")
    if retraining.outcome != "promoted":
        return f"scores stay as they are: {retraining.champion} is the champion"
    given = {"model": retraining.champion, "source": source, "output": output}
    prediction: Prediction = run_deployment(f"predict/{model}", parameters=given, poll_interval=1).state.result()
    return f"{prediction.num_rows} rows scored by {prediction.model}: {prediction.output}"


if __name__ == "__main__":
    print(retrain_then_score(*sys.argv[1:]))
