import cloudpickle
import pytest

from refit.flows.prediction import predict
from refit.flows.retraining import retrain
from refit.flows.training import train


@pytest.mark.parametrize("flow", [train, retrain, predict], ids=lambda flow: flow.name)
def test_a_flow_can_be_pickled_as_it_is_where_a_process_serves_it(flow):
    again = cloudpickle.loads(cloudpickle.dumps(flow))
    assert (again.name, again.parameters) == (flow.name, flow.parameters)
