"""What the agent relies on in torch's private parts: a new minor version must be looked at before it is allowed."""

import inspect

import pytest
import torch
from torch.distributed.elastic.agent.server.api import SimpleElasticAgent
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs, PContext, SubprocessContext
from torch.distributed.elastic.rendezvous import registry
from torch.distributed.elastic.rendezvous.api import RendezvousHandler, RendezvousStoreInfo


def parameters(function):
    return list(inspect.signature(inspect.unwrap(function)).parameters)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (LocalElasticAgent._start_workers, ["self", "worker_group"]),
        (LocalElasticAgent._stop_workers, ["self", "worker_group"]),
        (LocalElasticAgent._monitor_workers, ["self", "worker_group"]),
        (LocalElasticAgent._shutdown, ["self", "death_sig", "timeout"]),
        (SimpleElasticAgent._invoke_run, ["self", "role"]),
        (SimpleElasticAgent._initialize_workers, ["self", "worker_group"]),
        (PContext.close, ["self", "death_sig", "timeout"]),
        (SubprocessContext.pids, ["self"]),
        (LogsSpecs.reify, ["self", "envs"]),
        (LogsSpecs.__init__, ["self", "log_dir", "redirects", "tee", "local_ranks_filter"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_what_we_override_or_call_has_the_expected_signature(function, expected):
    """The methods exist and take what we think they take."""
    assert parameters(function) == expected


def test_what_we_read_is_there():
    """Attributes, environment switches and abstract methods that the agent is built on."""
    assert torch.__version__.startswith("2.15.")
    local, simple = inspect.getsource(LocalElasticAgent), inspect.getsource(SimpleElasticAgent)
    assert "self._pcontext: PContext | None" in local
    assert "self._pcontext.close(death_sig, timeout)" in local
    assert '"TORCHELASTIC_USE_AGENT_STORE": str(use_agent_store)' in local
    assert "restart_count = spec.max_restarts - self._remaining_restarts" in local
    assert "except RendezvousGracefulExitError" in simple
    assert "self._shutdown(timeout=self._shutdown_timeout)" in simple
    assert 'os.environ.get("TORCH_ELASTIC_WORKER_IDENTICAL"' in simple
    assert "TORCHELASTIC_SIGNALS_TO_HANDLE" in inspect.getsource(PContext)
    assert "self.subprocess_handlers" in inspect.getsource(SubprocessContext)
    assert {"stdouts", "stderrs", "error_files"} <= set(LogsDest.__dataclass_fields__)
    assert parameters(RendezvousStoreInfo) == ["master_addr", "master_port"]
    assert RendezvousHandler.__abstractmethods__ == {
        "get_backend",
        "get_run_id",
        "is_closed",
        "next_rendezvous",
        "num_nodes_waiting",
        "set_closed",
        "shutdown",
    }
    assert "get_handler()" in inspect.getsource(registry._register_out_of_tree_handlers)
