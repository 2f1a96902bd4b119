"""What is found wrong with a spec, where, and what the user is told to do."""

import pytest

from llmtrain_operator.api.validation import parse
from tests.support.specs import BAD, patched


def found(patch, name="job"):
    return parse(name, patched(patch))[1]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.id)
def test_what_the_schema_forbids_is_found_offline_too(bad):
    """The models refuse what the API server refuses, at the same field, with a remedy."""
    problem = next((p for p in found(bad.patch) if p.path == bad.path), None)
    assert problem is not None, found(bad.patch)
    assert bad.says in problem.message
    assert problem.remedy


CONFIG = "spec.deepspeed.config"
TEMPLATE = "spec.template"


def config(**keys):
    return {"deepspeed": {"config": keys}}


def pod(**fields):
    return {"template": {"spec": fields}}


def trainer(**fields):
    return pod(containers=[{"name": "trainer", **fields}])


@pytest.mark.parametrize(
    ("patch", "path", "says", "remedy"),
    [
        pytest.param({"trainig": {}}, "spec.trainig", "spec has no trainig", "mean training?", id="typo at the top"),
        pytest.param(
            {"training": {"optimizer": {"learningRate": 1}}},
            "spec.training.optimizer.learningRate",
            "has no learningRate",
            "Remove it",
            id="unknown key below",
        ),
        pytest.param(
            {"training": {"schedule": {"warmupStep": 1}}},
            "spec.training.schedule.warmupStep",
            "has no warmupStep",
            "mean warmupSteps?",
            id="typo below",
        ),
        pytest.param(
            config(zero_optimisation={"stage": 2}),
            f"{CONFIG}.zero_optimisation",
            "DeepSpeed 0.19.8's configuration has no zero_optimisation",
            "mean zero_optimization?",
            id="unknown DeepSpeed key",
        ),
        pytest.param(
            config(zero_optimization={"overlap_com": True}),
            f"{CONFIG}.zero_optimization.overlap_com",
            "zero_optimization has no overlap_com",
            "mean overlap_comm?",
            id="unknown nested DeepSpeed key",
        ),
        pytest.param(
            config(zero_optimization={"offload_param": {"devic": "cpu"}}),
            f"{CONFIG}.zero_optimization.offload_param.devic",
            "has no devic",
            "mean device?",
            id="unknown DeepSpeed key two blocks down",
        ),
        pytest.param(
            config(elasticity={"enabled": True}),
            f"{CONFIG}.elasticity",
            "Elastic training has been removed",
            "Remove it",
            id="removed DeepSpeed block",
        ),
        pytest.param(
            config(zero_optimization={"mics_shard_size": 2}),
            f"{CONFIG}.zero_optimization.mics_shard_size",
            "MiCS",
            "Remove it",
            id="removed DeepSpeed key",
        ),
        pytest.param(
            config(train_batch_size=16),
            f"{CONFIG}.train_batch_size",
            "training.globalBatchSize decides this, and says 8",
            "set spec.training.globalBatchSize",
            id="another batch size",
        ),
        pytest.param(
            config(train_micro_batch_size_per_gpu=4),
            f"{CONFIG}.train_micro_batch_size_per_gpu",
            "training.microBatchSize decides",
            "set spec.training.microBatchSize",
            id="micro-batch in DeepSpeed's words",
        ),
        pytest.param(
            config(gradient_accumulation_steps=2),
            f"{CONFIG}.gradient_accumulation_steps",
            "training.globalBatchSize decides",
            "Remove it",
            id="accumulation",
        ),
        pytest.param(
            config(gradient_clipping=0.5),
            f"{CONFIG}.gradient_clipping",
            "training.gradientClipping decides this, and says 1.0",
            "set spec.training.gradientClipping",
            id="another clipping",
        ),
        pytest.param(
            config(fp16={"enabled": True}),
            f"{CONFIG}.fp16.enabled",
            "training.precision decides this, and says False",
            "set spec.training.precision",
            id="another precision",
        ),
        pytest.param(
            config(bf16={"enabled": False}),
            f"{CONFIG}.bf16.enabled",
            "training.precision decides",
            "set spec.training.precision",
            id="precision switched off",
        ),
        pytest.param(
            config(optimizer={"type": "AdamW", "params": {"lr": 1}}),
            f"{CONFIG}.optimizer",
            "training.optimizer decides",
            "set spec.training.optimizer",
            id="optimizer block",
        ),
        pytest.param(
            config(scheduler={"type": "WarmupLR"}),
            f"{CONFIG}.scheduler",
            "training.schedule decides",
            "set spec.training.schedule",
            id="scheduler block",
        ),
        pytest.param(
            config(zero_optimization={"stage": 3}),
            f"{CONFIG}.zero_optimization.stage",
            "deepspeed.stage decides this, and says 2",
            "set spec.deepspeed.stage",
            id="another stage",
        ),
        pytest.param(
            config(zero_optimization={"offload_optimizer": {"device": "nvme"}}),
            f"{CONFIG}.zero_optimization.offload_optimizer.device",
            "deepspeed.offloadOptimizer decides",
            "set spec.deepspeed.offloadOptimizer",
            id="another offload device",
        ),
        pytest.param(
            config(bf16=True), f"{CONFIG}.bf16", "it is a block of settings", "Write bf16: {...}", id="no block"
        ),
        pytest.param(
            config(zero_optimization={"offload_optimizer": "cpu"}),
            f"{CONFIG}.zero_optimization.offload_optimizer",
            "it is a block of settings",
            "Write offload_optimizer: {...}",
            id="no block in a block",
        ),
        pytest.param(
            config(gradient_allreduce_op="sum"),
            f"{CONFIG}.gradient_allreduce_op",
            "depend on the number of workers",
            "Remove it",
            id="gradients summed over workers",
        ),
        pytest.param(
            config(managed_gradient_accumulation=False),
            f"{CONFIG}.managed_gradient_accumulation",
            "depend on the number of workers",
            "Remove it",
            id="an update per micro-batch",
        ),
        pytest.param(
            config(tensor_parallel={"autotp_size": 2}),
            f"{CONFIG}.tensor_parallel",
            "data-parallel only",
            "Remove it",
            id="tensor parallelism",
        ),
        pytest.param(
            {"training": {"precision": "fp16"}, "deepspeed": {"stage": 0}},
            "spec.deepspeed.stage",
            "divides gradients by a loss scale that it never applied",
            "Use stage 1, 2 or 3",
            id="fp16 without a loss scale",
        ),
        pytest.param(
            {"model": {"preset": None, "config": {"hidden_size": 8}}},
            "spec.model.config",
            "model_type is missing",
            "such as llama",
            id="Hugging Face config without a type",
        ),
        pytest.param(
            {"model": {"preset": None, "config": {"model_type": "llama", "hidden_size": 10, "num_attention_heads": 3}}},
            "spec.model.config.hidden_size",
            "not a multiple of num_attention_heads (3)",
            "Change one",
            id="Hugging Face config with uneven heads",
        ),
        pytest.param(
            {"data": {"source": "pvc://claim/../other"}},
            "spec.data.source",
            "must not contain '..'",
            "pvc://claim/path",
            id="path out of its volume",
        ),
        pytest.param(
            {"data": {"include": ["*.py", "../*"]}},
            "spec.data.include[1]",
            "leaves data.source",
            "relative",
            id="glob out of the source",
        ),
        pytest.param(
            {"template": {"sepc": {}}}, f"{TEMPLATE}.sepc", "no sepc", "mean spec?", id="typo in the template"
        ),
        pytest.param(
            {"template": {"spec": []}}, f"{TEMPLATE}.spec", "not an object", "Give an object", id="list for spec"
        ),
        pytest.param(
            pod(nodeSelectr={}), f"{TEMPLATE}.spec.nodeSelectr", "no nodeSelectr", "mean nodeSelector?", id="pod typo"
        ),
        pytest.param(
            pod(restartPolicy="Always"),
            f"{TEMPLATE}.spec.restartPolicy",
            "operator sets it",
            "Remove",
            id="restart policy",
        ),
        pytest.param(pod(hostname="x"), f"{TEMPLATE}.spec.hostname", "find each other", "Remove", id="hostname"),
        pytest.param(
            pod(containers={"trainer": {}}),
            f"{TEMPLATE}.spec.containers",
            "not a list of named containers",
            "called trainer",
            id="containers as an object",
        ),
        pytest.param(
            pod(containers=[{"resources": {}}]),
            f"{TEMPLATE}.spec.containers",
            "not a list of named containers",
            "called trainer",
            id="container without a name",
        ),
        pytest.param(
            trainer(resource={}),
            f"{TEMPLATE}.spec.containers[0].resource",
            "no resource",
            "mean resources?",
            id="container typo",
        ),
        pytest.param(
            trainer(command=["sh"]),
            f"{TEMPLATE}.spec.containers[0].command",
            "operator sets it",
            "Use spec.entrypoint",
            id="command",
        ),
        pytest.param(
            trainer(image="x"), f"{TEMPLATE}.spec.containers[0].image", "operator sets it", "Use spec.image", id="image"
        ),
        pytest.param(
            trainer(env=[{"name": "A"}, {"name": "PET_NNODES", "value": "1"}]),
            f"{TEMPLATE}.spec.containers[0].env[1].name",
            "torchrun set it",
            "another name",
            id="torchrun's environment",
        ),
        pytest.param(
            pod(volumes=[{"name": "tmp", "hostPath": {"path": "/"}}]),
            f"{TEMPLATE}.spec.volumes[0].name",
            "has a volume of that name",
            "another name",
            id="volume of ours",
        ),
        pytest.param(
            {"template": {"metadata": {"labels": {"llmtrain.io/job": "x"}}}},
            f"{TEMPLATE}.metadata.labels.llmtrain.io/job",
            "finds members by it",
            "another label",
            id="label of ours",
        ),
        pytest.param(
            {"template": {"metadata": {"annotations": {"llmtrain.io/avoids": "n1"}}}},
            f"{TEMPLATE}.metadata.annotations.llmtrain.io/avoids",
            "operator sets it",
            "another annotation",
            id="annotation of ours",
        ),
        pytest.param(
            {"template": {"metadata": {"name": "x"}}},
            f"{TEMPLATE}.metadata.name",
            "operator sets it",
            "labels and annotations",
            id="pod name",
        ),
    ],
)
def test_what_the_schema_cannot_say_is_found(patch, path, says, remedy):
    """Each problem names the field, what is wrong and what to do, and is the only one."""
    (problem,) = found(patch)
    assert problem.path == path
    assert says in problem.message
    assert remedy in problem.remedy


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param({}, id="the shortest"),
        pytest.param({"nodes": {"min": 2, "max": 4, "desired": 3}}, id="elastic"),
        pytest.param(
            {"model": None, "data": None, "training": None, "entrypoint": {"script": "train.py", "args": ["-x"]}},
            id="own script alone",
        ),
        pytest.param({"deepspeed": {"config": {"gradient_accumulation_steps": "auto"}}}, id="auto, as in HF configs"),
        pytest.param({"deepspeed": {"config": {"train_batch_size": 8}}}, id="repeating a typed field"),
        pytest.param({"deepspeed": {"config": {"bf16": {"enabled": True}}}}, id="repeating the precision"),
        pytest.param(
            {"deepspeed": {"config": {"zero_optimization": {"stage": 2, "stage3_prefetch_bucket_size": 1e6}}}},
            id="alias of a ZeRO setting",
        ),
        pytest.param({"deepspeed": {"config": {"data_efficiency": {"anything": 1}}}}, id="open DeepSpeed block"),
        pytest.param(
            {"entrypoint": {"script": "a.py"}, "deepspeed": {"config": {"optimizer": {"type": "Lamb"}}}},
            id="own script with its own optimizer",
        ),
        pytest.param({"checkpoint": {"flash": {"everySteps": "auto"}}}, id="automatic snapshots"),
        pytest.param(trainer(resources={"limits": {"cpu": 1}}, env=[{"name": "A", "value": "b"}]), id="resources"),
        pytest.param(
            trainer(command=["torchrun", "a.py"]) | {"entrypoint": {"script": "a.py"}},
            id="torchrun in the agent's place",
        ),
        pytest.param(pod(volumes=[{"name": "shm", "emptyDir": {"sizeLimit": "1Gi"}}]), id="size of /dev/shm"),
        pytest.param(
            {"template": {"metadata": {"labels": {"team": "a"}}, "spec": {"schedulingGates": [{"name": "kueue"}]}}},
            id="what a queue injects",
        ),
    ],
)
def test_sensible_specs_have_no_problems(patch):
    """What works is not complained about."""
    assert found(patch) == ()


@pytest.mark.parametrize("name", ["9lives", "a.b", "A", "x" * 59])
def test_a_name_that_makes_no_host_name_is_a_problem(name):
    """Members are found by host name, so the job's name must be usable in one."""
    (problem,) = found({}, name)
    assert (problem.path, problem.value) == ("metadata.name", name)
