from pathlib import Path

from refit.flows.retraining import retrain
from refit.server.forms import fill_in_values


def test_a_form_asks_for_changes_and_tells_the_values_that_hold_without():
    Path("refit.toml").write_text('name = "toy"\n[data]\ntarget = "label"\n')
    form = fill_in_values(retrain.parameters.model_dump(), {"optimizer": {"lr": 0.5}})
    assert [*form["properties"]] == ["changes"]
    shown = {name: section["properties"] for name, section in form["definitions"].items()}
    assert shown["SettingsTree"]["name"]["description"].endswith(' Here: "toy", from refit.toml.')
    assert shown["DataSettings"]["target"]["description"].endswith(' Here: "label", from refit.toml.')
    assert shown["OptimizerSettings"]["lr"]["description"].endswith(" Here: 0.5, as deployed.")
    assert shown["OptimizerSettings"]["momentum"]["description"].endswith(" Default: 0.0.")
